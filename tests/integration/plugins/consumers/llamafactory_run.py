"""LLaMA-Factory itself, pretraining stage, through `opmix.plugins.llamafactory.run`."""

import json

from small_run import BATCH, LENGTH, STEPS, WORK, answer, prepared

from opmix.plugins.llamafactory import run

model, _, section = prepared()
content = {
    "model_name_or_path": str(model),
    "opmix": section,
    "stage": "pt",
    "do_train": True,
    "finetuning_type": "full",
    "template": "default",
    "cutoff_len": LENGTH,
    "per_device_train_batch_size": BATCH,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "output_dir": str(WORK / "out"),
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 1,
    "save_strategy": "no",
}
remix = run(content)
state = json.loads((WORK / "out" / "trainer_state.json").read_text())
losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
answer(remix, steps=state["global_step"], losses=losses, saved=(WORK / "out" / "model.safetensors").is_file())
