"""DataFlex itself on LLaMA-Factory, with the mixer `opmix`: `python -m opmix.plugins.dataflex YAML`, in this process."""

import json
import runpy
import sys

import yaml
from small_run import BATCH, LENGTH, SMALL, STEP_TOKENS, WORK, prepared

model, files, _ = prepared()
(WORK / "dataset_info.json").write_text(
    json.dumps({name: {"file_name": path, "columns": {"prompt": "text"}} for name, path in files.items()})
)
mixer = {"domains": files, "budget": 2 * STEP_TOKENS, "search": {**SMALL, "sequence_length": LENGTH}}
mixer["search"]["cache_dir"] = str(WORK / "cache")
mixer["search"]["trainer"] = {"learning_rate": 1e-3, "per_device_train_batch_size": BATCH, "use_cpu": True}
(WORK / "components.yaml").write_text(yaml.safe_dump({"mixers": {"opmix": {"name": "opmix", "params": mixer}}}))
content = {
    "model_name_or_path": str(model),
    "stage": "pt",
    "do_train": True,
    "finetuning_type": "full",
    "template": "default",
    "dataset": "web,code",
    "dataset_dir": str(WORK),
    "cutoff_len": LENGTH,
    "per_device_train_batch_size": BATCH,
    "learning_rate": 1e-3,
    "train_type": "dynamic_mix",
    "components_cfg_file": str(WORK / "components.yaml"),
    "component_name": "opmix",
    "mixture_sample_rule": "mixture",
    "init_mixture_proportions": [0.75, 0.25],
    "warmup_step": 2,
    "update_step": 2,
    "update_times": 2,
    "output_dir": str(WORK / "out"),
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 1,
    "save_strategy": "no",
    "preprocessing_num_workers": 1,
    "overwrite_cache": True,
}
(WORK / "train.yaml").write_text(yaml.safe_dump(content))
sys.argv = ["dataflex", str(WORK / "train.yaml")]
asked = []

from dataflex.train.dataset.mixed_proportion_manager import MixedProportionManager  # noqa: E402

told = MixedProportionManager.set_proportions
MixedProportionManager.set_proportions = lambda self, shares: asked.append(shares) or told(self, shares)
runpy.run_module("opmix.plugins.dataflex", run_name="__main__")
state = json.loads((WORK / "out" / "trainer_state.json").read_text())
found = [json.loads(p.read_text())["mixture"] for p in sorted(WORK.glob("out/opmix/step-*/mixture.json"))]
rows = [[float(x) for x in shares] for shares in asked if shares is not None]
losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
sys.stdout.write(
    "\n" + json.dumps({"steps": state["global_step"], "found": found, "rows": rows, "losses": losses}) + "\n"
)
