"""torchtitan: the exported module as it is, its own loader, and batches drawn from it."""

from collections import Counter

from consumer import FILE, IDS, NAMES, report

module = {}
exec(compile(FILE.read_text(), str(FILE), "exec"), module)
config = module["dataloader"]()
loader_class = module["InterleavedHuggingFaceTextDataLoader"]


class Words:
    """A tokenizer whose tokens are words."""

    def encode(self, text, add_bos=True, add_eos=True):
        return [IDS[word] for word in text.split()] + [0]  # one more, which the loader shifts away


loader = loader_class(config, dp_world_size=1, dp_rank=0, tokenizer=Words(), seq_len=32, local_batch_size=10)
count = Counter()
for number, (inputs, _) in enumerate(loader):
    for row in inputs["input"].tolist():
        count.update(NAMES[token] for token in row)
    if number == 1000:
        break
report("torchtitan", count)
