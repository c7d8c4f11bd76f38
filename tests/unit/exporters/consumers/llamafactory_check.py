"""LLaMA-Factory: its argument parser, its reading of dataset_info.json and its merge."""

import os

os.environ["DISABLE_VERSION_CHECK"] = "1"  # it pins an older transformers

import yaml
from consumer import FILE, bare_package, report, words
from datasets import load_dataset
from transformers import HfArgumentParser, TrainingArguments

bare_package("llamafactory.data")  # its __init__ needs torchaudio
from llamafactory.data.data_utils import merge_dataset  # noqa: E402
from llamafactory.data.parser import get_dataset_list  # noqa: E402
from llamafactory.extras.constants import FILEEXT2TYPE  # noqa: E402
from llamafactory.hparams.data_args import DataArguments  # noqa: E402

os.chdir(FILE.parent)
settings = {**yaml.safe_load(FILE.read_text()), "output_dir": "out", "use_cpu": True}
data, training = HfArgumentParser((DataArguments, TrainingArguments)).parse_dict(settings)
parts = []
for attributes in get_dataset_list(data.dataset, data.dataset_dir):
    assert attributes.load_from == "file"
    assert attributes.prompt == "text"
    place = os.path.join(data.dataset_dir, attributes.dataset_name)  # noqa: PTH118 (as LLaMA-Factory does)
    kind = FILEEXT2TYPE[place.rsplit(".", 1)[-1]]
    parts.append(load_dataset(kind, data_files=[place], split=attributes.split))
merged = merge_dataset(parts, data, seed=42)
report("llamafactory", words(merged["text"]), epochs=training.num_train_epochs)
