"""TRL's SFTTrainer as a trainer factory: `opmix.search(..., objective="sft", make_trainer=opmix.training.trl_sft.sft_trainer)`.

On rows with a loss mask it learns what `default_trainer` learns (a test holds it to that) and is slower on small models, since it also
measures entropy and accuracy. It is here for those whose own code hangs on it. Needs the extra `trl`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from opmix.errors import ConfigError
from opmix.training.factory import LossGuard, TrainSpec, stack_rows


def sft_trainer(spec: TrainSpec) -> Trainer:
    """An SFTTrainer on the rows of the plan.

    Raises:
        ConfigError: TRL is not installed.
    """
    try:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise ConfigError("make_trainer: sft_trainer needs TRL; pip install 'trl>=1.16,<1.17'") from error
    cpu = next(spec.model.parameters()).device.type == "cpu"
    bf16 = not cpu and torch.cuda.is_bf16_supported() and not spec.arguments.get("fp16", False)
    # TRL's defaults (bf16, gradient checkpointing, its own preparation) are set to those of `default_trainer`.
    defaults: dict[str, Any] = {
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "bf16": bf16,
        "use_cpu": cpu,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": not cpu,
    }
    arguments = SFTConfig(
        output_dir=str(spec.output_dir),
        max_steps=spec.steps,
        seed=spec.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **{**defaults, **spec.arguments},
    )

    def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        items = [spec.dataset[i] for i in batch["index"]]
        return {key: [item[key] for item in items] for key in items[0]}

    # TRL takes only `datasets`' own classes: a table of indices, each looked up in the plan when it is read.
    table = Dataset.from_dict({"index": list(range(len(spec.dataset)))}).with_transform(rows)
    trainer = SFTTrainer(
        model=spec.model,
        args=arguments,
        train_dataset=table,
        data_collator=stack_rows,
        processing_class=_no_tokenizer(),
        callbacks=[LossGuard(), *spec.callbacks],
    )
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _no_tokenizer() -> Any:
    """TRL wants a tokenizer even where nothing is left to tokenise."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>")),
        eos_token="<eos>",
        pad_token="<eos>",
    )
