"""On-policy self-distillation (SDFT, arXiv 2601.19897): the student answers; the same model, shown a demonstration, teaches it.

The demonstration is the row's own answer. The loss is the reverse KL from student to teacher, over the whole vocabulary, on the student's
own tokens. Not TRL's SDFTTrainer, which was tried (docs/instruct.md): it loads the teacher from the name in the model's config, takes no
adapter that is not called "default", and cannot replay text. TRL's loss is the oracle in tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch.utils.data import Dataset
from transformers import GenerationConfig, Trainer

from opmix.compute.flops import ModelShape
from opmix.data import ChatRows, MixtureDataset, Plan, Rows, TokenSplit, pad_rows
from opmix.errors import DataError, ModelError
from opmix.models.layers import base_model_of, model_shape
from opmix.models.load import load_model
from opmix.runs.files import files_signature
from opmix.training.factory import TrainerFactory, TrainSpec, default_trainer
from opmix.training.like_lengths import answered_by_length, pad_left
from opmix.training.objectives import Usage
from opmix.training.settings import DistillationSettings, ObjectiveName
from opmix.training.teacher import Teacher, TeacherFollows, cast_once

_SEED = 1_000_003
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class SelfDistillation:
    """The objective; text in the same stage is learned by cross-entropy (replay).

    Attributes:
        options: How.
        contexts: Of each chat domain, the teacher's contexts, document for document (`prepare_domain(demonstration=...)`).
        stop_ids: Tokens that end an answer.
        limit: Positions the model has.
    """

    options: DistillationSettings
    contexts: Mapping[str, TokenSplit]
    stop_ids: tuple[int, ...]
    limit: int | None = None

    @property
    def name(self) -> ObjectiveName:
        """As in the configuration."""
        return "sdft"

    @property
    def grouped(self) -> bool:
        """Always: its micro-batches are no plain rows."""
        return True

    def fitting(self, name: str) -> npt.NDArray[np.bool_] | None:
        """Which conversations of a domain leave the teacher room to read an answer after its context; None: all.

        Raises:
            DataError: None does.
        """
        if self.limit is None:
            return None
        sizes = np.diff(self.contexts[name].offsets)
        fits = np.asarray(sizes + self.options.max_new_tokens <= self.limit)
        if not fits.any():
            raise DataError(
                f"domain {name!r}: the shortest context of the teacher has {sizes.min()} tokens, which with "
                "sdft.max_new_tokens "
                f"{self.options.max_new_tokens} is more than the model's {self.limit} positions; lower max_new_tokens, "
                "or use sft"
            )
        return fits

    def settings(self) -> dict[str, Any]:
        """All of them."""
        contexts = {name: split.fingerprint for name, split in self.contexts.items()}
        made = {**asdict(self.options), "contexts": contexts, "stop_ids": list(self.stop_ids)}
        other = made.pop("teacher_model")
        if other is None:
            return made
        return {**made, "teacher_model": files_signature(Path(other)) if Path(other).exists() else other}

    def dataset(self, rows: Mapping[str, Rows], plan: Plan, *, document_mask: bool) -> Dataset[Any]:
        """Prompts and contexts of conversations, rows of text."""
        return DistillationDataset(rows, self.contexts, plan, document_mask=document_mask)

    def collate(self, items: Sequence[Any]) -> Any:
        """Prompts and contexts padded on the left, text on the right."""
        questions = [item for item in items if "prompt" in item]
        texts = [item for item in items if "prompt" not in item]
        batch = pad_rows(texts) if texts else {}
        for key in ("prompt", "context") if questions else ():
            batch[f"{key}_ids"], batch[f"{key}_mask"] = pad_left([item[key] for item in questions])
        return batch

    def trainer(self, make_trainer: TrainerFactory | None, usage: Usage, shape: ModelShape) -> TrainerFactory:
        """`DistillationTrainer`."""
        if make_trainer is not None and make_trainer is not default_trainer:
            return make_trainer
        return partial(distillation_trainer, objective=self, usage=usage, shape=shape)

    def flops(self, shape: ModelShape, *, row_tokens: int, length: int, adapter_parameters: int | None = None) -> float:
        """An estimate: answers as long as the demonstrations, contexts twice as long as the rows."""
        learning = 3.0 * shape.forward(length)
        if adapter_parameters is not None:
            learning = shape.train_lora(length, adapter_parameters)
        return row_tokens * (3.0 * shape.forward(length) + learning)


class DistillationDataset(Dataset[dict[str, torch.Tensor]]):
    """Items are `prompt` and `context` (t,) of a conversation, or what `MixtureDataset` gives of a text."""

    def __init__(
        self, rows: Mapping[str, Rows], contexts: Mapping[str, TokenSplit], plan: Plan, *, document_mask: bool
    ) -> None:
        self._rows, self._contexts, self._plan = rows, contexts, plan
        self._texts = MixtureDataset(rows, plan, document_mask=document_mask)

    @property
    def restarts(self) -> bool:
        """That of the texts."""
        return self._texts.restarts

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        domain, row = map(int, self._plan.at(index))
        name = self._plan.names[domain]
        rows = self._rows[name]
        if not isinstance(rows, ChatRows):
            return self._texts[index]
        member = rows.members(row)[0]
        document, split = int(rows.documents[member]), self._contexts[name]
        context = split.tokens[int(split.offsets[document]) : int(split.offsets[document + 1])]
        return {"prompt": torch.from_numpy(prompt_of(rows, row)), "context": torch.from_numpy(context.astype(np.int64))}


def prompt_of(rows: Rows, row: int) -> npt.NDArray[np.int64]:
    """Token ids of a row before its last answer, (t,)."""
    ids, learned = rows[row], rows.labels(row) != -100
    return ids[: int(np.flatnonzero(np.diff(learned.astype(np.int8), prepend=0) == 1)[-1])]


def distillation_trainer(spec: TrainSpec, *, objective: SelfDistillation, usage: Usage, shape: ModelShape) -> Trainer:
    """The factory of self-distillation."""
    spec = replace(spec, arguments={"remove_unused_columns": False, **spec.arguments})
    trainer = default_trainer(spec, DistillationTrainer)
    assert isinstance(trainer, DistillationTrainer)
    trainer.distil(objective, usage, shape)
    resumed = getattr(spec, "resume_from", None)
    if resumed is not None and trainer.teacher is not None:
        trainer.teacher.load(resumed)
    return trainer


class DistillationTrainer(Trainer):
    """`transformers.Trainer` whose loss is self-distillation on prompts and cross-entropy on everything else."""

    def distil(self, objective: SelfDistillation, usage: Usage, shape: ModelShape) -> None:
        """Say what to distil; before `train`."""
        self.objective, self.usage, self.shape = objective, usage, shape
        self.model_accepts_loss_kwargs = (
            False  # our mean over a micro-batch's tokens is divided by the accumulation steps
        )
        self.teacher: Teacher | None = None
        self._other: Any = None
        if objective.options.teacher_model is not None:
            self._other = other_teacher(objective.options.teacher_model, self.model)
        elif objective.options.teacher != "live":
            rate = objective.options.ema_rate if objective.options.teacher == "ema" else 0.0
            self.teacher = Teacher(self.model, rate)
            self.add_callback(TeacherFollows(self.teacher))
        adapted = hasattr(self.model, "peft_config")
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self._adapter_parameters = trainable if adapted else None
        self._other_shape = None if self._other is None else model_shape(self._other)
        self._calls = (-1, 0)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the student's own tokens and the supervised tokens of replayed text, each worth the same."""
        if "prompt_ids" not in inputs and not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total: Any = 0.0
        count: Any = 0
        if "prompt_ids" in inputs:
            total, count = self._distilled(model, inputs)
        if "input_ids" in inputs:
            nll, tokens = self._replayed(model, inputs)
            total, count = total + nll, count + tokens
        return total / max(int(count), 1)

    def _replayed(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
        labels = inputs["labels"]
        rest = {k: v for k, v in inputs.items() if k in ("input_ids", "position_ids")}
        logits = model(**rest, use_cache=False).logits[:, :-1].float()
        nll = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="sum")
        self._count(labels.numel() * self._per_token(labels.shape[1]))
        return nll, int((labels[:, 1:] != -100).sum())

    def _per_token(self, length: int) -> float:
        if self._adapter_parameters is None:
            return self.shape.train(length)
        return self.shape.train_lora(length, self._adapter_parameters)

    def _count(self, flops: float) -> None:
        self.usage.flops = (self.usage.flops or 0.0) + flops

    def _distilled(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
        """Summed KL over the student's tokens, and how many of them count."""
        answer, mask = self.sample(model, inputs["prompt_ids"], inputs["prompt_mask"])
        answered = {k: inputs[k] for k in inputs if k.startswith(("prompt_", "context_"))}
        answered |= {"answer_ids": answer, "answer_mask": mask}
        parts = list(answered_by_length(answered, whole=self.args.world_size > 1))
        taught = [self._teacher_logits(model, part) for part in parts]
        total, count = torch.zeros((), device=answer.device), 0
        for part, teacher in zip(parts, taught, strict=True):
            student, mask = self._logits(model, part, "prompt"), part["answer_mask"]
            learned = mask.bool() & (
                torch.arange(mask.shape[1], device=mask.device) >= self.objective.options.skip_tokens
            )
            total = total + torch.where(learned, reverse_kl(student, teacher), 0.0).sum()
            count += int(learned.sum())
        self.usage.sampled_tokens += int(answered["answer_mask"].sum())
        self._count_distilled(answered, parts)
        return total, count

    def _count_distilled(
        self, answered: Mapping[str, torch.Tensor], parts: Sequence[Mapping[str, torch.Tensor]]
    ) -> None:
        """FLOPs of writing all answers together, and of reading and learning from them part by part."""
        adapter, other = self._adapter_parameters, self._other_shape
        rows, prompt = answered["prompt_ids"].shape
        self._count(rows * self.shape.writing(prompt, answered["answer_ids"].shape[1], adapter))
        for part in parts:
            rows, prompt = part["prompt_ids"].shape
            context, sampled = part["context_ids"].shape[1], part["answer_ids"].shape[1]
            taught = (other or self.shape).teaching(context, sampled, None if other else adapter)
            self._count(rows * (taught + self.shape.learning(prompt, sampled, adapter)))

    def sample(
        self, model: Any, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's answers (n, C) and what of them comes before or at a stop; drawn by seed, step and micro-batch alone."""
        options, stop = self.objective.options, self.objective.stop_ids
        room = (self.objective.limit or 1 << 30) - prompt_ids.shape[1]
        settings = GenerationConfig(
            do_sample=True,
            temperature=options.temperature,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            num_beams=1,
            max_new_tokens=max(1, min(options.max_new_tokens, room)),
            eos_token_id=list(stop),
            pad_token_id=stop[0],
            use_cache=True,
        )
        student, training = self.accelerator.unwrap_model(model), model.training
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self._draw())
            student.eval()
            # PEFT writes past the wrapper that casts a forward pass, hence autocast here too.
            with self.accelerator.autocast(), cast_once(student, _AUTOCAST.get(str(self.accelerator.mixed_precision))):
                whole = student.generate(input_ids=prompt_ids, attention_mask=prompt_mask, generation_config=settings)
            student.train(training)
        answer = whole[:, prompt_ids.shape[1] :].clone()
        ends = torch.isin(answer, torch.tensor(stop, device=answer.device))
        return answer, (ends.cumsum(1) - ends.long() == 0).long()

    def _draw(self) -> int:
        step, calls = self.state.global_step, self._calls[1] + 1 if self._calls[0] == self.state.global_step else 0
        self._calls = (step, calls)
        rank = self.args.process_index
        return ((self.args.seed * _SEED + step) * _SEED + calls * 4096 + rank) % (1 << 63)

    def _teacher_logits(self, model: Any, part: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self._other is not None:
            with torch.no_grad(), self.accelerator.autocast():
                return self._logits(self._other, part, "context")
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), nullcontext() if self.teacher is None else self.teacher.in_place():
                return self._logits(model, part, "context")
        finally:
            model.train(training)

    def _logits(
        self, model: Any, part: Mapping[str, torch.Tensor], after: Literal["prompt", "context"]
    ) -> torch.Tensor:
        """What is predicted for each token of the answers, (n, C, V), at the sampling temperature."""
        answer = part["answer_ids"]
        attention, num = torch.cat([part[f"{after}_mask"], part["answer_mask"]], dim=1), answer.shape[1]
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        keep = {"logits_to_keep": num + 1} if can_keep_logits(model) else {}
        out = model(
            input_ids=torch.cat([part[f"{after}_ids"], answer], dim=1),
            attention_mask=attention,
            position_ids=positions,
            use_cache=False,
            **keep,
        )
        return out.logits[:, -num - 1 : -1].float() / self.objective.options.temperature

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: `usage` counts."""
        return 0


def can_keep_logits(model: Any) -> bool:
    """Whether a model can be asked for its last logits only."""
    return "logits_to_keep" in inspect.signature(base_model_of(getattr(model, "module", model)).forward).parameters


def other_teacher(name: str, student: Any) -> Any:
    """Another model as the teacher, on the student's device and in its precision, frozen.

    Raises:
        ModelError: It cannot be loaded, or has another vocabulary.
    """
    weight = next(student.parameters())
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if weight.dtype == torch.bfloat16 else "float32"
    teacher = load_model(name, dtype=dtype, device=weight.device).requires_grad_(False)
    have, wanted = (int(base_model_of(m).config.get_text_config().vocab_size) for m in (teacher, student))
    if have != wanted:
        raise ModelError(
            f"sdft.teacher_model {name!r}: a vocabulary of {have}, the student's has {wanted}; expected the same "
            "tokenizer for both"
        )
    return teacher


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """`KL(student || teacher)` of next-token distributions, (..., V) to (...), nats."""
    student, teacher = torch.log_softmax(student_logits, dim=-1), torch.log_softmax(teacher_logits, dim=-1)
    return (student.exp() * (student - teacher)).sum(dim=-1)
