"""A search over six real domains with a small model trained on the spot, as a user would run it: through the command line.

python benchmarks/search_pretrain.py [--base-steps 600] [--probe-steps 60]
"""

from __future__ import annotations

from common import (
    LENGTH,
    TRAINER,
    base_model,
    files_of,
    packed,
    parser,
    search_as_a_user,
    shared_domains,
    tokenizer_for,
)

from opmix.cli.console import quiet_libraries
from opmix.mixing.mixture import Mixture

NAMES = ["bible_kjv", "code_python", "dictionary", "math_metamath", "medical_nih", "reviews_movie"]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--base-steps", type=int, default=600)
    arguments.add_argument("--probe-steps", type=int, default=60)
    args = arguments.parse_args()
    quiet_libraries()
    domains = shared_domains(args.data, NAMES)
    tokenizer = tokenizer_for(domains)
    data = packed(domains, tokenizer, args.out / "cache")
    folder = args.out / f"six-domains-seed{args.seed}"
    base_model(folder / "base", tokenizer, data["train"], Mixture.uniform(NAMES), args.base_steps, args.seed)
    config = {
        "model": str((folder / "base").resolve()),
        "domains": files_of(args.data, NAMES),
        "old_mixture": dict(Mixture.uniform(NAMES)),
        "budget": {"tokens": 1_000_000},
        "sequence_length": LENGTH,
        "trainer": TRAINER,
        "probes": {"steps": args.probe_steps},
        "solve": {"max_epochs": 4, "floors": {"medical_nih": 0.05}},
        "cache_dir": str((args.out / "cache").resolve()),
        "seed": args.seed,
    }
    raise SystemExit(search_as_a_user(folder, config))


if __name__ == "__main__":
    main()
