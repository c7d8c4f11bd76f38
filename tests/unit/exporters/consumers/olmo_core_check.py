"""OLMo-core: its YAML reader and its own selection of tokens from raw token files."""

import os

import numpy as np
from consumer import CORPUS, FILE, IDS, WORK, documents, report
from olmo_core.data.source_mixture import SourceMixtureDatasetConfig, SourceMixtureList

os.chdir(WORK)
for name, number in IDS.items():
    (WORK / name).mkdir()
    count = sum(len(text.split()) for text in documents(name))
    np.full(count, number, dtype=np.uint16).tofile(WORK / name / "part-0.npy")  # OLMo-core's files are bare ids
assert CORPUS.is_dir()
sources = SourceMixtureList.from_yaml(FILE)
sources.validate()
requested = int(next(line for line in FILE.read_text().splitlines() if "requested_tokens to" in line).split()[5])
config = SourceMixtureDatasetConfig(
    source_list=sources, requested_tokens=requested, global_batch_size=32 * 8, render_tables=False, quiet=True
)
built = config.build(npdtype=np.uint16, sequence_length=32)
tokens = {s.name: sum(path.tokens for path in s.path_tokens) for s in built.sources}
report("ai2-olmo-core", tokens)
