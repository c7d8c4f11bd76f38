"""Stages of a life as life.json keeps them, made up."""


def loss(before, after):
    return {"before": before, "after": after, "error": 0.01}


def stage(name, seed, mixture, losses, forgetting, decided):
    part = {"steps": [0, 100], "tokens": 1_000_000, "decided": decided, "mixture": mixture, "training_loss": 3.0}
    if decided:
        part |= {
            "interval": {d: [max(0, s - 0.1), s + 0.1] for d, s in mixture.items()},
            "action": "move",
            "reason": "move: <b>gain</b>",
            "optimum": mixture,
            "predicted": dict.fromkeys(mixture, 4.0),
            "baseline": dict.fromkeys(mixture, 4.5),
            "probes": 3,
            "notes": [],
            "search_tokens": 1e5,
            "search_flops": 2e11,
        }
    return {
        "name": name,
        "phase": None,
        "folder": f"seed-{seed}/01-{name}",
        "domains": list(mixture),
        "new": [],
        "objective": "causal_lm",
        "tokens": 1_000_000,
        "steps": 100,
        "old_mixture": {"web": 1.0},
        "mixture": mixture,
        "parts": [part],
        "losses": {"valid": losses, "test": losses},
        "forgetting": forgetting,
        "scores": {},
        "tasks": [],
        "cost": {"tokens": {"training": 1e6}, "flops": {"training": 1e12, "probes": 2e11}, "search_share": 0.2},
        "notes": ["a <note>"],
    }
