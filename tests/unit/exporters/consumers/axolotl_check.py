"""axolotl: its schema validates every entry, its own loader opens it, and its rule keeps a part."""

from consumer import FILE, bare_package, report, too_old, words

# isort: split
import yaml

bare_package("axolotl.utils.data")  # its __init__ needs the whole training stack
from axolotl.utils.data import shared  # noqa: E402
from axolotl.utils.dict import DictDefault  # noqa: E402
from axolotl.utils.schemas.datasets import SFTDataset  # noqa: E402
from datasets import concatenate_datasets  # noqa: E402

if "weight" not in SFTDataset.model_fields:
    too_old("this axolotl has no weights; 0.21 has")
content = yaml.safe_load(FILE.read_text())
kept = []
for entry in content["datasets"]:
    checked = SFTDataset.model_validate(entry)
    assert not set(entry) - set(SFTDataset.model_fields)
    rows = shared.load_dataset_with_config(DictDefault({**entry, "trust_remote_code": False}), use_auth_token=None)
    if checked.weight < 1:  # as in axolotl.utils.data.sft, which needs its whole training stack
        rows = rows.shuffle(seed=1).select(range(max(1, int(len(rows) * checked.weight))))
    kept.append(rows)
merged = shared.merge_datasets(
    kept, DictDefault({"shuffle_merged_datasets": content["shuffle_merged_datasets"], "seed": 1})
)
assert len(merged) == len(concatenate_datasets(kept))
report("axolotl", words(merged["text"]), epochs=content["num_epochs"])
