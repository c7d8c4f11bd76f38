"""One new domain against old data: do slopes, or probes that overlap more, change the advice? Judged by full trainings over a grid.

    python benchmarks/evidence/continual.py [--seeds 0] [--data DIR] [--grid 0.25 0.4 0.5 0.6]

A base model of 1.1 M parameters is trained for 800 steps on medical and mathematical text, code is new, the stage takes 400 steps. Every
variant searches with 100-step probes; its optimum and the grid are trained on for equal tokens and judged on the test split.
Resumable: trainings are kept in `results/continual-seed*.json`.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

from stage import RESULTS, mean, parser

from opmix.cli.console import Display, quiet_libraries
from opmix.mixing.mixture import Mixture
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.runs.files import write_json
from opmix.training.full import train_on_mixture

sys.path.append(str(Path(__file__).parents[1]))

from common import LENGTH, STEP_SEQUENCES, TRAINER, base_model, packed, shared_domains, tokenizer_for

OLD, NEW = ["medical_nih", "math_metamath"], "code_python"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "gradients": {"proxies": {"gradients": True}},
    "share 0.7": {"probes": {"share": 0.7}},
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data/pretrain"))
    arguments.add_argument("--grid", type=float, nargs="+", default=[0.25, 0.4, 0.5, 0.6])
    args = arguments.parse_args()
    quiet_libraries()
    for seed in args.seeds:
        with Display() as display:
            one_seed(args.data, args.out / f"continual-seed{seed}", seed, args.grid, display)


def one_seed(data_folder: Path, out: Path, seed: int, grid: list[float], display: Display) -> None:
    """Searches, full trainings and the table of one seed."""
    from opmix import search

    domains = shared_domains(data_folder, [*OLD, NEW])
    tokenizer = tokenizer_for(domains)
    data = packed(domains, tokenizer, out.parent / "cache")
    old = Mixture.uniform(OLD)
    base = base_model(out / "base", tokenizer, {n: data["train"][n] for n in OLD}, old, 800, seed)
    tokens = 400 * STEP_SEQUENCES * LENGTH
    file = RESULTS / f"continual-seed{seed}.json"
    content = json.loads(file.read_text()) if file.exists() else {"true": {}, "variants": {}}

    def true(share: float) -> float:
        key = f"{share:.4f}"
        if key not in content["true"]:
            model = copy.deepcopy(base)
            mixture = Mixture.of({"old": 1 - share, NEW: share}).expand({"old": old})
            train_on_mixture(
                model, data["train"], mixture, tokens=tokens, arguments=TRAINER, seed=seed + 1, output_dir=out / "trainer",
                progress=display, name=f"full training at {share:.3f} {NEW}",
            )  # fmt: skip
            test = [held_out(n, p, num=200, seed=seed) for n, p in data["test"].items()]
            found = evaluate(model, test)
            content["true"][key] = dict(zip(found.names, map(float, found.losses[0]), strict=True))
            write_json(file, content)
        return mean(content["true"][key])

    for name, changes in VARIANTS.items():
        settings = {"probes": {"steps": 100, **changes.get("probes", {})}, "proxies": changes.get("proxies", {})}
        result = search(
            base, tokenizer, {n: {"train": d.train.paths[0], "valid": d.valid.paths[0]} for n, d in domains.items()},
            budget=tokens, old_mixture=dict(old), sequence_length=LENGTH, trainer=TRAINER, seed=seed, cache_dir=str(out.parent / "cache"),
            out=out / name.replace(" ", "-"), progress=display, **settings,
        )  # fmt: skip
        share = round(float(result.verdict.optimum.mixture[NEW]), 4)
        cost = result.ledger.by_purpose()["flops"]
        content["variants"][name] = {
            "optimum": share, "interval": result.interval[NEW], "points": len(result.table.points), "flops": cost,
            "check": result.proposal.check["verdict"],
        }  # fmt: skip
        write_json(file, content)
        true(share)
    at = {share: true(share) for share in grid}
    best = min(mean(v) for v in content["true"].values())
    for name, row in content["variants"].items():
        row["regret"] = true(row["optimum"]) / best - 1
        low, high = row["interval"]
        display.note(
            f"seed {seed} {name:>10}: {row['points']} points, optimum {row['optimum']:.3f} ({low:.3f}-{high:.3f}), "
            f"regret {row['regret']:.2%}"
        )
    display.note(" ".join(f"{share:.2f}: {loss:.4f}" for share, loss in at.items()))
    write_json(file, content)


if __name__ == "__main__":
    main()
