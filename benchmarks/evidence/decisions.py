"""What whole searches decide on the demo's stage: as published, and with specialised probes in the fit and a direct probe to decide.

    python benchmarks/evidence/decisions.py [--seeds 0 1] [--train]

Each optimum is trained on with --train (kept with the grid's trainings); gains are over uniform, in mean loss on the test split.
"""

from __future__ import annotations

from stage import RESULTS, RebalancingStage, mean, parser

from opmix.api import run_search
from opmix.cli.console import Display, quiet_libraries
from opmix.config import SearchConfig
from opmix.runs.files import write_json


def variant(config: SearchConfig, name: str) -> SearchConfig:
    """A search's configuration; 64 held-out sequences a domain."""
    changed = name == "specialised, arbiter"
    proxies = config.proxies.model_copy(update={"eval_sequences": 64, "specialised": changed})
    return config.model_copy(
        update={"proxies": proxies, "decision": config.decision.model_copy(update={"arbiter": changed})}
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--train", action="store_true")
    args = arguments.parse_args()
    quiet_libraries()
    rows = []
    with Display() as display:
        for seed in args.seeds:
            stage = RebalancingStage(seed, args.out / f"seed{seed}", display)
            at_uniform = mean(stage.true_losses(stage.uniform))
            for name in ("default", "specialised, arbiter"):
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
                    "seed": seed, "variant": name, "optimum": dict(optimum), "action": decision.action, "predicted": decision.gain,
                    "probability": decision.probability, "direct_gain": decision.direct_gain, "direct_error": decision.direct_error,
                    "flops": result.ledger.by_purpose()["flops"],
                }  # fmt: skip
                if args.train or stage.known(optimum):
                    row["measured"] = at_uniform - mean(stage.true_losses(optimum))
                rows.append(row)
                write_json(RESULTS / "decisions.json", {"rows": rows})
                display.note(f"seed {seed} {name}: {decision.reason}; measured {row.get('measured')}; {dict(optimum)}")


if __name__ == "__main__":
    main()
