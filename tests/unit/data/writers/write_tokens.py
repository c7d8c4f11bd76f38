"""Documents as a package's own code writes them: `python write_tokens.py PACKAGE FOLDER`, documents as JSON on standard input.

Packages pin each other's dependencies, so they are taken from the folders in OPMIX_TRAINERS, behind this environment.
"""

import json
import os
import sys
from pathlib import Path

sys.path.extend(filter(None, os.environ.get("OPMIX_TRAINERS", "").split(os.pathsep)))


def megatron(out, documents):
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(out / "web.bin"), dtype=np.uint16)
    for ids in documents:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(out / "web.idx"))


def datatrove(out, documents):
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    file = TokenizedFile(str(out), "web.ds", save_index=True, token_size=2)
    for ids in documents:
        file.write(ids, None)
    file.close()


def litdata(out, documents):
    import torch
    from litdata.streaming import Cache, TokensLoader

    cache = Cache(str(out), chunk_bytes=1 << 10, item_loader=TokensLoader(block_size=8))
    for index, ids in enumerate(documents):
        cache[index] = torch.tensor(ids, dtype=torch.uint16)
    cache.done()
    cache.merge()


if __name__ == "__main__":  # collecting doctests imports it
    _, package, folder = sys.argv
    {"megatron": megatron, "datatrove": datatrove, "litdata": litdata}[package](Path(folder), json.load(sys.stdin))
