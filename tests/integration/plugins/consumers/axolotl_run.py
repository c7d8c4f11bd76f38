"""axolotl itself, from its YAML to the saved model, with the plug-in."""

import yaml
from small_run import BATCH, LENGTH, STEPS, WORK, answer, prepared

model, _, section = prepared()
content = {
    "base_model": str(model),
    "plugins": ["opmix.plugins.axolotl.OpMixPlugin"],
    "opmix": section,
    "datasets": [{"path": str(WORK / "data"), "type": "completion"}],
    "sequence_len": LENGTH,
    "micro_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "output_dir": str(WORK / "out"),
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "attn_implementation": "eager",
    "save_safetensors": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": None,
    "dataloader_pin_memory": False,
}
path = WORK / "axolotl.yaml"
path.write_text(yaml.safe_dump(content))

from axolotl.cli.config import load_cfg  # noqa: E402
from axolotl.cli.train import do_train  # noqa: E402
from axolotl.core.builders import causal  # noqa: E402

kept = []
build = causal.HFCausalTrainerBuilder.build
causal.HFCausalTrainerBuilder.build = lambda self, *given: kept.append(build(self, *given)) or kept[-1]
from axolotl.cli.args import TrainerCliArgs  # noqa: E402

do_train(load_cfg(str(path)), TrainerCliArgs())
(trainer,) = kept
remix = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "RemixCallback")
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
answer(remix, steps=trainer.state.global_step, losses=losses, saved=(WORK / "out" / "model.safetensors").is_file())
