"""Documents as a package's own code writes them: `python write_tokens.py PACKAGE FOLDER`, documents as JSON on standard input.

Packages pin each other's dependencies, so they are taken from the folders in OPMIX_TRAINERS, behind this environment.
"""

import json
import os
import sys
from pathlib import Path

sys.path.extend(filter(None, os.environ.get("OPMIX_TRAINERS", "").split(os.pathsep)))
PACKAGE, OUT = sys.argv[1], Path(sys.argv[2])
DOCUMENTS = json.load(sys.stdin)


def megatron():
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(OUT / "web.bin"), dtype=np.uint16)
    for ids in DOCUMENTS:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(OUT / "web.idx"))


def datatrove():
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    file = TokenizedFile(str(OUT), "web.ds", save_index=True, token_size=2)
    for ids in DOCUMENTS:
        file.write(ids, None)
    file.close()


def litdata():
    import torch
    from litdata.streaming import Cache, TokensLoader

    cache = Cache(str(OUT), chunk_bytes=1 << 10, item_loader=TokensLoader(block_size=8))
    for index, ids in enumerate(DOCUMENTS):
        cache[index] = torch.tensor(ids, dtype=torch.uint16)
    cache.done()
    cache.merge()


{"megatron": megatron, "datatrove": datatrove, "litdata": litdata}[PACKAGE]()
