"""How well discovered clusters match the true domains: the shared pretraining domains mixed together and divided again.

    python benchmarks/discover_pretrain.py --data ../shared/data/pretrain --out runs/benchmarks/discover [--embed MODEL --documents N]

Prints a table and writes discover.json: adjusted Rand index and normalised mutual information (0: chance, 1: the same partition),
and purity (share of documents that are in their cluster's majority domain), for the number of domains chosen by silhouette and for the
true number, over seeds.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from common import parser, record

from opmix.data import iter_documents
from opmix.discovery import DiscoverySettings, discover
from opmix.domain import Source


def mixed_corpus(data: Path, folder: Path, limit: int | None) -> tuple[list[str], list[str]]:
    """One file for each domain, under a name that says nothing, and the domain of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    files, truth = [], []
    for number, domain in enumerate(sorted(p for p in data.iterdir() if p.is_dir())):
        file = folder / f"part-{number:02d}.jsonl.gz"
        texts = islice(iter_documents(Source(paths=(str(domain / "train.jsonl.gz"),))), limit)
        with gzip.open(file, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        files.append(str(file))
        truth.append(domain.name)
    return files, truth


def agreement(table: Path, domain_of: dict[str, str]) -> dict[str, float]:
    """Scores of an assignment table."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    with gzip.open(table, "rt", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    true, found = [domain_of[row["file"]] for row in rows], [row["domain"] for row in rows]
    pairs = Counter(zip(found, true, strict=True))
    majority = sum(max(n for (f, _), n in pairs.items() if f == name) for name in set(found))
    return {
        "clusters": len(set(found)),
        "ari": float(adjusted_rand_score(true, found)),
        "nmi": float(normalized_mutual_info_score(true, found)),
        "purity": majority / len(rows),
        "documents": len(rows),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--embed", help="model whose hidden states are clustered")
    arguments.add_argument("--documents", type=int, help="of each domain at most")
    arguments.add_argument("--seeds", type=int, default=3)
    chosen = arguments.parse_args()
    files, truth = mixed_corpus(chosen.data, chosen.out / "corpus", chosen.documents)
    results: list[dict[str, Any]] = []
    for asked in (None, len(truth)):
        for seed in range(chosen.seed, chosen.seed + chosen.seeds):
            out = chosen.out / "division"
            shutil.rmtree(out, ignore_errors=True)
            started = time.perf_counter()
            settings = DiscoverySettings(domains=asked, seed=seed, index_only=True, embed=chosen.embed)
            result = discover(files, out, settings)
            seconds = time.perf_counter() - started
            scores = agreement(out / "assignments.csv.gz", dict(zip(files, truth, strict=True)))
            row = {
                "asked": asked or "auto",
                "seed": seed,
                **scores,
                "silhouette": result.silhouette,
                "seconds": seconds,
            }
            results.append(row)
            print(
                " ".join(
                    f"{key}={value:.3f}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
                )
            )
    record(chosen.out / "discover.json", {"embed": chosen.embed, "domains": truth, "results": results})


if __name__ == "__main__":
    main()
