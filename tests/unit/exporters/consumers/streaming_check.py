"""MosaicML streaming: real MDS shards, the exported module as it is, and its own resampling."""

import os
from collections import Counter

import numpy as np
from consumer import FILE, IDS, NAMES, WORK, bare_package, documents, report

streaming, _ = bare_package("streaming")  # its __init__ needs torchvision
from streaming.base.dataset import StreamingDataset  # noqa: E402
from streaming.base.format.mds.writer import MDSWriter  # noqa: E402
from streaming.base.stream import Stream  # noqa: E402

streaming.Stream, streaming.StreamingDataset = Stream, StreamingDataset
os.chdir(WORK)
for name, number in IDS.items():
    count = sum(len(text.split()) for text in documents(name)) // 32
    with MDSWriter(out=name, columns={"tokens": "ndarray:uint16:32"}) as out:
        for _ in range(count):
            out.write({"tokens": np.full(32, number, dtype=np.uint16)})
module = {}
exec(compile(FILE.read_text(), str(FILE), "exec"), module)
dataset = module["build"](batch_size=8)
assert dataset.epoch_size == module["EPOCH_SIZE"]
count = Counter()
for sample in dataset:
    count.update(NAMES[token] for token in sample["tokens"].tolist())
report("mosaicml-streaming", count)
