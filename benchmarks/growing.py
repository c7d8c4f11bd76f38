"""A life whose domains grow from 2 to 12, one a stage: what each stage's search costs.

    python benchmarks/growing.py

Toy domains and a tiny model: the figures are tokens and FLOPs of the ledger, not quality. Exits 1 if the cost grows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import record

import opmix
from opmix.cli.console import Display, quiet_libraries
from opmix.testing import write_toy_domains


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("runs/growing"))
    arguments.add_argument("--domains", type=int, default=12)
    args = arguments.parse_args()
    quiet_libraries()
    names = [f"domain{i:02d}" for i in range(args.domains)]
    files = write_toy_domains(args.out / "data", names, 200)
    first = {"name": "two", "domains": names[:2], "tokens": 8192, "mixture": "uniform"}
    # A floor: so short a run could turn a domain down, and what is turned down is not weighed again.
    later = [
        {"name": f"to-{i + 1}", "add": [names[i]], "tokens": 8192, "solve": {"floors": {names[i]: 0.05}}}
        for i in range(2, args.domains)
    ]
    life = {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
        "tokenizer": {"vocab_size": 512},
        "sequence_length": 64,
        "stages": [first, *later],
        "domains": {n: {"train": str(f.resolve()), "holdout": 0.2} for n, f in files.items()},
        "trainer": {"learning_rate": 3e-3, "per_device_train_batch_size": 8},
        "probes": {"steps": 5},
        "proxies": {"eval_sequences": 16},
        "evaluation": {"sequences": 8},
        "keep": {"models": "last", "probes": False},
        "decision": {"draws": 50},
    }
    with Display() as display:
        result = opmix.run(life, out=args.out / "run", progress=display)
    rows = []
    for stage in result.content["seeds"]["0"]["stages"][1:]:
        part = stage["parts"][-1]
        rows.append(
            {
                "domains": len(stage["domains"]),
                "new": len(stage["new"]),
                "probes": part["probes"],
                "tokens": part["search_tokens"],
                "flops": part["search_flops"],
            }
        )
        sys.stdout.write(
            "{domains:3d} domains, {new} new: {probes} probes, {tokens:,.0f} tokens, {flops:.3g} FLOPs\n".format(
                **rows[-1]
            )
        )
    growth = max(r["flops"] for r in rows) / rows[0]["flops"]
    sys.stdout.write(f"the dearest search costs {growth:.2f} times the first; one new domain each\n")
    record(args.out / "result.json", {"stages": rows, "growth": growth})
    return int(growth > 1.1)


if __name__ == "__main__":
    sys.exit(main())
