"""llm-foundry: its own `build_streams`, and every key is one that its data set takes.

Its import needs Composer, so the function is taken out of the installed source and run with real `Stream`s.
"""

import ast
from collections import Counter
from pathlib import Path
from typing import Any, Optional

import numpy as np
import yaml
from consumer import CORPUS, FILE, bare_package, documents, report

bare_package("streaming")
from streaming.base.stream import Stream  # noqa: E402

_, folder = bare_package("llmfoundry")
tree = ast.parse(Path(folder / "data" / "text_data.py").read_text())
build = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "build_streams")
place = {"Stream": Stream, "Optional": Optional, "Any": Any}
exec(compile(ast.Module([build], []), "text_data.py", "exec"), place)
text = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "StreamingTextDataset")
start = next(n for n in text.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
accepted = {argument.arg for argument in start.args.args}

loader = yaml.safe_load(FILE.read_text())["train_loader"]
dataset = loader["dataset"]
assert loader["name"] == "text"
assert set(dataset) <= accepted
streams = place["build_streams"](dict(dataset["streams"]))
assert CORPUS.is_dir()
sizes = np.array([sum(len(t.split()) for t in documents(name)) // 32 for name in dataset["streams"]])
total = Stream.apply_weights(streams, sizes, dataset["epoch_size"], seed=0)
assert total == dataset["epoch_size"]
report("llm-foundry", Counter({n: int(s.choose) for n, s in zip(dataset["streams"], streams, strict=True)}))
