"""What whole searches decide on the demo's stage: with whole probes and with adaptive ones.

    python benchmarks/evidence/decisions.py [--seeds 0 1] [--train] [--variants adaptive]

Each optimum is trained on with --train (kept with the grid's trainings); gains are over uniform, in mean loss on the test split. The
adaptive variant stops its probes when the predicted regret is small (`probes.adaptive`).
"""

from __future__ import annotations

import json
from dataclasses import replace

from stage import RESULTS, RebalancingStage, mean, parser

from opmix.api import run_search
from opmix.cli.console import Display, quiet_libraries
from opmix.config import SearchConfig
from opmix.runs.files import write_json

VARIANTS = ("default", "adaptive")


def variant(config: SearchConfig, name: str) -> SearchConfig:
    """A search's configuration; 64 held-out sequences a domain."""
    proxies = replace(config.proxies, eval_sequences=64)
    probes = replace(config.probes, adaptive=name == "adaptive")
    return replace(config, proxies=proxies, probes=probes)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--train", action="store_true")
    arguments.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = arguments.parse_args()
    quiet_libraries()
    file = RESULTS / "decisions.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = [r for r in rows if r["seed"] not in args.seeds or r["variant"] not in args.variants]
    with Display() as display:
        for seed in args.seeds:
            stage = RebalancingStage(seed, args.out / f"seed{seed}", display)
            at_uniform = mean(stage.true_losses(stage.uniform))
            for name in args.variants:
                folder = stage.out / f"search-{name.replace(', ', '-')}"
                result = run_search(
                    variant(stage.config, name),
                    model=stage.base,
                    tokenizer=stage.tokenizer,
                    out=folder,
                    progress=display,
                )
                decision, optimum = result.verdict.decision, result.verdict.optimum.mixture
                row = {
                    "seed": seed,
                    "variant": name,
                    "optimum": dict(optimum),
                    "action": decision.action,
                    "predicted": decision.gain,
                    "probability": decision.probability,
                    "direct_gain": decision.direct_gain,
                    "direct_error": decision.direct_error,
                    "flops": result.ledger.by_purpose()["flops"],
                    "share_of_stage": result.json()["cost"]["search_share"],
                    "probe_steps": result.proposal.evidence.get("adaptive", {}).get(
                        "steps", result.config.probes.steps
                    ),
                }
                if args.train or stage.known(optimum):
                    row["measured"] = at_uniform - mean(stage.true_losses(optimum))
                rows.append(row)
                write_json(file, {"rows": rows})
                display.note(f"seed {seed} {name}: {decision.reason}; measured {row.get('measured')}; {dict(optimum)}")


if __name__ == "__main__":
    main()
