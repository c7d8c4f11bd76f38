"""Pretraining: OP-Mix against uniform, at equal tokens and at equal FLOPs including the search: the paper's figure 4 at small size.

    python benchmarks/evidence/pretraining.py --set figure [--seeds 0 1 2]      # data enough for one epoch of anything near uniform
    python benchmarks/evidence/pretraining.py --set limited [--seeds 0 1 2]     # an eighth of it: uniform repeats its smallest six times

A model from scratch takes a fifth of its steps on the uniform mixture of five domains (the paper's prefix); the rest is trained, from
that same prefix, on uniform, in proportion to size, on what a search recommends and on its optimum, and on uniform for as many more steps
as that search cost (`longer`). `search` is `opmix.search` as it is; `published` has the paper's law on interpolated proxies. Ten tokens
a parameter, probes of a tenth of the run, domains of 30:15:9:48:24 in size with two overlapping pairs (pretraining_texts.py), as in the
paper. Test losses; no search sees that split. Results go to results/pretraining.json; those of the sets `first` and `second` there are
of five domains of equal size, by code before 2026-11-26, with a search, `specialised`, whose settings are gone since d824eca.
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
from common import LENGTH, STEP_SEQUENCES, TRAINER, base_model, packed, parser, record, tokenizer_for
from pretraining_texts import write_domains

from opmix import SearchResult, search
from opmix.cli.console import Display, quiet_libraries
from opmix.mixing.mixture import Mixture
from opmix.models.layers import model_shape
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.runs.files import write_json
from opmix.training.full import train_on_mixture

SETS = {"figure": 1.0, "limited": 0.125}
"""Text of a domain, by that of `figure`."""
SEARCHES: dict[str, dict[str, Any]] = {"search": {}, "published": {"law": "log_linear"}}
SAME = 0.005
"""Mixtures less apart in total variation are one training."""
RESULTS = Path(__file__).parent / "results" / "pretraining.json"


class Stage:
    """One seed: the prefix, and whatever is trained from it."""

    def __init__(self, args: Any, seed: int, display: Display) -> None:
        self.args, self.seed, self.display = args, seed, display
        self.prefix = args.steps // 5
        self.home = args.out / f"pretraining-{args.set}-seed{seed}-{args.steps}-{args.probe_steps}-{args.width}"
        self.home.mkdir(parents=True, exist_ok=True)
        self.domains = write_domains(args.out / f"pretraining-{args.set}-texts", args.data, SETS[args.set])
        self.names = list(self.domains)
        self.tokenizer = tokenizer_for(self.domains)
        self.data = packed(self.domains, self.tokenizer, args.out / "cache")
        self.uniform = Mixture.uniform(self.names)
        self.base = base_model(
            self.home / "base", self.tokenizer, self.data["train"], self.uniform, self.prefix, seed, args.width
        )
        self.test = [held_out(n, rows, num=200, seed=seed) for n, rows in self.data["test"].items()]
        self.step_flops = model_shape(self.base).train(LENGTH) * STEP_SEQUENCES * LENGTH
        self.trained: dict[str, tuple[Mixture, dict[str, float]]] = {}

    @property
    def available(self) -> dict[str, int]:
        """Tokens of each domain."""
        return {n: len(rows) * LENGTH for n, rows in self.data["train"].items()}

    def search(self, **settings: Any) -> SearchResult:
        """From the prefix, as a user would make it. The searches share their probes."""
        files = {n: {s: getattr(d, s).paths[0] for s in ("train", "valid", "test")} for n, d in self.domains.items()}
        return search(
            self.base,
            self.tokenizer,
            files,
            budget=(self.args.steps - self.prefix) * STEP_SEQUENCES * LENGTH,
            sequence_length=LENGTH,
            trainer=TRAINER,
            seed=self.seed,
            old_mixture=dict(self.uniform),
            probes={"steps": self.args.probe_steps},
            proxies={"eval_sequences": self.args.eval_sequences},
            cache_dir=str((self.args.out / "cache").resolve()),
            out=self.home / "search",
            progress=self.display,
            **settings,
        )

    def losses(self, arm: str, mixture: Mixture, steps: int) -> dict[str, float]:
        """Test losses by domain after so many steps on `mixture` from the prefix, nats per token; kept."""
        for other, found in self.trained.values():
            if arm != "longer" and 0.5 * np.abs(other.weights - mixture.weights).sum() < SAME:
                return found
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
            told = evaluate(model, self.test).losses[0]
            write_json(file, dict(zip(self.names, map(float, told), strict=True)))
        made: dict[str, float] = json.loads(file.read_text())
        self.trained[arm] = mixture, made
        return made


def run(stage: Stage) -> dict[str, Any]:
    """All arms of one seed."""
    steps = stage.args.steps - stage.prefix
    sizes = Mixture.normalised(stage.available)
    arms = {"uniform": stage.losses("uniform", stage.uniform, steps), "size": stage.losses("size", sizes, steps)}
    said = {}
    for name, settings in SEARCHES.items():
        result = stage.search(**settings)
        decision, optimum = result.verdict.decision, result.verdict.optimum.mixture
        flops = result.ledger.total("flops")
        told = {"action": decision.action, "predicted_gain": decision.gain, "probability": decision.probability}
        spent = {"search_flops": flops, "search_share": flops / (steps * stage.step_flops)}
        said[name] = {"optimum": dict(optimum), "mixture": dict(result.mixture), **told, **spent}
        arms[f"{name}, optimum"] = stage.losses(f"{name}-optimum", optimum, steps)
        arms[name] = stage.losses(name, result.mixture, steps)
    longer = steps + round(said["search"]["search_flops"] / stage.step_flops)
    arms["longer"] = stage.losses("longer", stage.uniform, longer)
    return {
        "seed": stage.seed,
        "model_size": sum(p.numel() for p in stage.base.parameters()),
        "available": stage.available,
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
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--set", choices=SETS, default="figure", help="how much text there is")
    arguments.add_argument("--steps", type=int, default=2130, help="of the whole pretraining")
    arguments.add_argument("--probe-steps", type=int, default=213)
    arguments.add_argument("--eval-sequences", type=int, default=64)
    arguments.add_argument("--width", type=int, default=48, help="of the model: 48 is 0.22 M parameters, 64 0.34 M")
    arguments.set_defaults(data=Path("../shared/data"))
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
