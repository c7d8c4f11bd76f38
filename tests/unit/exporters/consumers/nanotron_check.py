"""nanotron (its repository; the package of 2024 has no nanosets): its own stage class and its own index of samples."""

from consumer import CORPUS, FILE, bare_package, documents, report, too_old

# isort: split
import ast
from collections import Counter
from pathlib import Path

import dacite
import numpy as np
import yaml

_, folder = bare_package("nanotron")
if not (Path(folder) / "data" / "nanoset.py").exists():
    too_old("this nanotron has no nanosets; they are in its repository")
names = {"NanosetDatasetsArgs", "DataArgs", "DatasetStageArgs", "PretrainDatasetsArgs", "SFTDatasetsArgs"}


def take(file, wanted, place):
    """Run some definitions of a file whose imports need a whole training stack."""
    nodes = [n for n in ast.parse(file.read_text()).body if getattr(n, "name", "") in wanted]
    assert {n.name for n in nodes} == set(wanted)
    exec(compile(ast.Module(nodes, []), str(file), "exec"), place)
    return place


prelude = (
    "from dataclasses import dataclass\nimport glob, os\nfrom typing import List, Optional, Union\nDEFAULT_SEED = 42\n"
)
config = {"__name__": "nanotron.config.config"}
exec(prelude, config)
take(Path(folder) / "config" / "config.py", names, config)
stage = yaml.safe_load(FILE.read_text())["data_stages"][0]
parsed = dacite.from_dict(config["DatasetStageArgs"], stage, dacite.Config(strict_unions_match=False, strict=True))
chosen = parsed.data.dataset
assert isinstance(chosen, config["NanosetDatasetsArgs"]), chosen
assert parsed.start_training_step == 1

index = {"np": np, "jit": lambda **_: lambda f: f, "Dict": dict, "List": list, "Tuple": tuple}
take(Path(folder) / "data" / "nanoset.py", {"build_nanoset_index_helper"}, index)
assert CORPUS.is_dir()
sizes = [sum(len(t.split()) for t in documents(name)) // 32 for name in chosen.dataset_folder]
weights = np.array(chosen.dataset_weights) / sum(chosen.dataset_weights)
drawn, _ = index["build_nanoset_index_helper"](n_samples=sum(sizes), weights=weights, dataset_sizes=sizes)
report("nanotron", Counter(chosen.dataset_folder[i] for i in drawn), version="repository")
