"""Does a longer probe change the advice? The demo's stage searched with probes of several lengths, then trained on.

    python benchmarks/horizon.py [--seed 0] [--probe-steps 30 60 120 240]

A short adapter run rewards what is learned quickly. Each length's optimum is trained on for the demo's stage beside uniform, on
equal tokens, and judged on the test split; the search never saw it.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from common import PREFIX_STEPS, STAGE_STEPS, parser, rebalancing_config, record

from opmix.api import run_search
from opmix.cli.console import Display, quiet_libraries
from opmix.data import PackedSequences, prepare_domain
from opmix.demo.run import (
    LENGTH,
    PREFIX_TRAINER,
    STAGE_TRAINER,
    STEP_SEQUENCES,
    new_model,
    train_tokenizer,
)
from opmix.demo.texts import write_domains
from opmix.mixing.mixture import Mixture
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.training.full import train_on_mixture


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--probe-steps", type=int, nargs="+", default=[30, 60, 120, 240])
    args = arguments.parse_args()
    quiet_libraries()
    out = args.out / f"horizon-seed{args.seed}"
    files = write_domains(out / "data")
    tokenizer = train_tokenizer(files)
    config = rebalancing_config(files, out, args.seed)
    data = {n: prepare_domain(d.located(out), tokenizer, cache_dir=out / "cache") for n, d in config.domains.items()}
    train = {n: PackedSequences(d.train, LENGTH) for n, d in data.items()}
    uniform = Mixture.uniform(tuple(files))
    base = new_model(tokenizer, args.seed)
    tokens = STAGE_STEPS * STEP_SEQUENCES * LENGTH
    test = [held_out(n, PackedSequences(d.test, LENGTH), num=128, seed=args.seed) for n, d in data.items()]

    with Display() as display:

        def trained(mixture: Mixture, name: str) -> float:
            model = copy.deepcopy(base)
            train_on_mixture(
                model,
                train,
                mixture,
                tokens=tokens,
                arguments=STAGE_TRAINER,
                seed=args.seed + 1,
                output_dir=out / "trainer",
                progress=display,
                name=name,
            )
            return float(evaluate(model, test).losses.mean())

        train_on_mixture(
            base,
            train,
            uniform,
            tokens=PREFIX_STEPS * STEP_SEQUENCES * LENGTH,
            arguments=PREFIX_TRAINER,
            seed=args.seed,
            output_dir=out / "trainer",
            progress=display,
            name="prefix",
        )
        at_uniform = trained(uniform, "uniform")
        rows = []
        for steps in args.probe_steps:
            wanted = replace(config, probes=replace(config.probes, steps=steps))
            result = run_search(wanted, model=base, tokenizer=tokenizer, out=out / f"search-{steps}", progress=display)
            optimum = result.verdict.optimum.mixture
            gain = at_uniform - trained(optimum, f"optimum of {steps}-step probes")
            decision = result.verdict.decision
            rows.append(
                {
                    "steps": steps,
                    "optimum": dict(optimum),
                    "predicted": decision.gain,
                    "probability": decision.probability,
                    "measured": gain,
                    "twins": float(np.mean(list(result.proposal.check["twins"][0]["difference"].values()))),
                    "share_of_flops": result.json()["cost"]["search_share"],
                }
            )
    record(out / "horizon.json", {"uniform": at_uniform, "rows": rows})
    for row in rows:
        shares = " ".join(f"{d}={s:.2f}" for d, s in row["optimum"].items())
        print(
            f"{row['steps']:4d} steps: predicted {row['predicted']:+.4f} (P {row['probability']:.2f}), measured {row['measured']:+.4f}, "
            f"twins {row['twins']:+.4f}; {shares}"
        )


if __name__ == "__main__":
    main()
