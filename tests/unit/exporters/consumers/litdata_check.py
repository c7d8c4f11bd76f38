"""litdata: real chunks, the exported module as it is, and samples drawn until the first domain ends."""

import os
from collections import Counter

import torch
from consumer import FILE, IDS, NAMES, WORK, documents, report
from litdata.streaming import Cache, TokensLoader

os.chdir(WORK)
for name, number in IDS.items():
    count = sum(len(text.split()) for text in documents(name)) // 32
    cache = Cache(name, chunk_size=32 * 512, item_loader=TokensLoader(block_size=32))
    for index in range(count):
        cache[index] = torch.full((32,), number, dtype=torch.int)
    cache.done()
    cache.merge()
module = {}
exec(compile(FILE.read_text(), str(FILE), "exec"), module)
count = Counter()
for sample in module["build"]():
    count.update(NAMES[token] for token in sample.tolist())
report("litdata", count)
