"""TRL: its own parser reads the YAML, its own `get_dataset` makes the mixture."""

from consumer import FILE, WORK, report, words
from trl import DatasetMixtureConfig, SFTConfig, TrlParser, get_dataset

parser = TrlParser((DatasetMixtureConfig, SFTConfig))
arguments = ["--config", str(FILE), "--output_dir", str(WORK), "--bf16", "false", "--use_cpu", "true"]
mixture, training = parser.parse_args_and_config(arguments)
rows = get_dataset(mixture)["train"]
assert rows.column_names == ["text"]
report("trl", words(rows["text"]), epochs=training.num_train_epochs)
