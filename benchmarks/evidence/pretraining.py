"""Pretraining: OP-Mix against uniform, at equal tokens and at equal FLOPs including the search: the paper's figure 4 at small size.

    python benchmarks/evidence/pretraining.py [--seeds 0 1] [--set first]

A model from scratch takes a fifth of its steps on the uniform mixture of five domains (the paper's prefix); the rest
is trained, from that same prefix, on uniform, on the optimum of the default search (`published`), and on uniform for
as many more steps as that search cost (`longer`). The recorded results hold a further search, `specialised`, whose
settings are gone since d824eca. What `opmix search` says, move or keep, is recorded beside. Test perplexities; no
search sees that split. Results go to results/pretraining.json.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import (
    LENGTH,
    STEP_SEQUENCES,
    TRAINER,
    base_model,
    packed,
    parser,
    record,
    shared_domains,
    tokenizer_for,
)

from opmix import SearchResult, search
from opmix.cli.console import Display, quiet_libraries
from opmix.mixing.mixture import Mixture
from opmix.models.load import model_shape
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.runs.files import write_json
from opmix.training.full import train_on_mixture

SETS = {
    "first": ["medical_nih", "speeches_us", "math_metamath", "reviews_movie", "docs_python"],
    "second": ["legal_licenses", "bible_kjv", "code_python", "dictionary", "shakespeare"],
}
"""The first stands in the place of the paper's arxiv, c4, open_web_math, reddit and stackexchange."""
SEARCHES: dict[str, dict[str, Any]] = {
    "published": {},
}
RESULTS = Path(__file__).parent / "results" / "pretraining.json"


class Stage:
    """One seed: the prefix, and whatever is trained from it."""

    def __init__(self, args: Any, seed: int, display: Display) -> None:
        self.args, self.seed, self.display = args, seed, display
        self.prefix = args.steps // 5
        self.names = SETS[args.set]
        which = "" if args.set == "first" else f"-{args.set}"
        self.home = args.out / f"pretraining-seed{seed}-{args.steps}-{args.probe_steps}-{args.width}{which}"
        self.home.mkdir(parents=True, exist_ok=True)
        self.domains = shared_domains(args.data, self.names)
        self.tokenizer = tokenizer_for(self.domains)
        self.data = packed(self.domains, self.tokenizer, args.out / "cache")
        self.uniform = Mixture.uniform(self.names)
        self.base = base_model(
            self.home / "base", self.tokenizer, self.data["train"], self.uniform, self.prefix, seed, args.width
        )
        self.test = [held_out(n, rows, num=200, seed=seed) for n, rows in self.data["test"].items()]
        self.step_flops = model_shape(self.base).train(LENGTH) * STEP_SEQUENCES * LENGTH

    def search(self, **settings: Any) -> SearchResult:
        """From the prefix, as a user would make it. The searches share their probes."""
        files = {n: {"train": d.train.paths[0], "valid": d.valid.paths[0]} for n, d in self.domains.items() if d.valid}
        proxies = {"eval_sequences": self.args.eval_sequences, **settings.pop("proxies", {})}
        tokens = (self.args.steps - self.prefix) * STEP_SEQUENCES * LENGTH
        return search(
            self.base,
            self.tokenizer,
            files,
            budget=tokens,
            sequence_length=LENGTH,
            trainer=TRAINER,
            seed=self.seed,
            probes={"steps": self.args.probe_steps},
            proxies=proxies,
            cache_dir=str((self.args.out / "cache").resolve()),
            out=self.home / "search",
            progress=self.display,
            **settings,
        )

    def losses(self, arm: str, mixture: Mixture, steps: int) -> dict[str, float]:
        """Test losses by domain after so many steps on `mixture` from the prefix, nats per token; kept."""
        file = self.home / f"{arm}.json"
        if not file.exists():
            model = copy.deepcopy(self.base)
            train_on_mixture(
                model,
                self.data["train"],
                mixture,
                tokens=steps * STEP_SEQUENCES * LENGTH,
                arguments=TRAINER,
                seed=self.seed + 1,
                output_dir=self.home / "trainer",
                progress=self.display,
                name=f"seed {self.seed}: {arm}, {steps} steps",
            )
            found = evaluate(model, self.test).losses[0]
            write_json(file, dict(zip(self.names, map(float, found), strict=True)))
        return dict(json.loads(file.read_text()))


def run(stage: Stage) -> dict[str, Any]:
    """All arms of one seed."""
    steps = stage.args.steps - stage.prefix
    arms = {"uniform": stage.losses("uniform", stage.uniform, steps)}
    said = {}
    for name, settings in SEARCHES.items():
        result = stage.search(**settings)
        flops = result.ledger.total("flops")
        optimum = result.verdict.optimum.mixture
        said[name] = {
            "optimum": dict(optimum),
            "action": result.verdict.decision.action,
            "predicted_gain": result.verdict.decision.gain,
            "probability": result.verdict.decision.probability,
            "direct_gain": result.verdict.decision.direct_gain,
            "search_flops": flops,
            "search_share": flops / (steps * stage.step_flops),
        }
        arms[name] = stage.losses(name, optimum, steps)
    longer = steps + round(said["published"]["search_flops"] / stage.step_flops)
    arms["longer"] = stage.losses("longer", stage.uniform, longer)
    return {
        "seed": stage.seed,
        "model_size": sum(p.numel() for p in stage.base.parameters()),
        "prefix_steps": stage.prefix,
        "stage_steps": steps,
        "longer_steps": longer,
        "searches": said,
        "losses": arms,
        "perplexity_change": {a: perplexity_change(x, arms["uniform"]) for a, x in arms.items()},
    }


def perplexity_change(losses: dict[str, float], reference: dict[str, float]) -> float:
    """Relative change of the mean perplexity over domains; negative is better."""
    means = [float(np.mean([math.exp(x) for x in found.values()])) for found in (losses, reference)]
    return means[0] / means[1] - 1


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--set", choices=SETS, default="first", help="of domains")
    arguments.add_argument("--steps", type=int, default=1000, help="of the whole pretraining")
    arguments.add_argument("--probe-steps", type=int, default=50)
    arguments.add_argument("--eval-sequences", type=int, default=32)
    arguments.add_argument("--width", type=int, default=64, help="of the model: 64 is 0.34 M parameters, 128 is 1.1 M")
    args = arguments.parse_args()
    quiet_libraries()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    settings = {k: getattr(args, k) for k in ("set", "steps", "probe_steps", "eval_sequences", "width")}
    with Display() as display:
        for seed in args.seeds:
            made = {**run(Stage(args, seed, display)), "arguments": settings}
            rows = [r for r in rows if (r["seed"], r["arguments"]) != (seed, settings)] + [made]
            record(RESULTS, {"rows": rows})
            display.note(f"seed {seed}: " + ", ".join(f"{a} {c:+.2%}" for a, c in made["perplexity_change"].items()))


if __name__ == "__main__":
    main()
