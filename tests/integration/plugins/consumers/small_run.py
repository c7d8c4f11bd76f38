"""What the runs beside this file share: a tiny model and two domains on disk, and the answer as the last line of standard output."""

import json
import sys
from pathlib import Path

from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

WORK = Path(sys.argv[1]).resolve()
STEPS, BATCH, LENGTH = 6, 2, 32
STEP_TOKENS = BATCH * LENGTH
SMALL = {
    "probes": {"steps": 2, "rank": 2},
    "proxies": {"eval_sequences": 4},
    "decision": {"draws": 10, "verify": False},
}


def prepared():
    """Folder of the model, files of the domains, and the section `opmix` that decides twice."""
    files = {name: str(path) for name, path in write_toy_domains(WORK / "data", ["web", "code"]).items()}
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64).save_pretrained(WORK / "model")
    tokenizer.save_pretrained(WORK / "model")
    section = {
        "domains": files,
        "mixture": {"web": 0.75, "code": 0.25},
        "at": [2 * STEP_TOKENS, 4 * STEP_TOKENS],
        "cache_dir": str(WORK / "cache"),
        "search": SMALL,
    }
    return WORK / "model", files, section


def answer(remix, **more):
    """Print what the test looks at."""
    told = {
        "switches": [[s.step, s.mixture] for s in remix.switches],
        "served": remix.stream.served,
        "reports": sorted(str(p.parent.name) for p in Path(remix.out).rglob("report.html")),
    }
    sys.stdout.write("\n" + json.dumps({**told, **more}) + "\n")
