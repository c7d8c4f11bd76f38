"""Where the time of a self-distillation step goes, and tokens a second: writing, teacher's pass, student's pass.

    python benchmarks/distil_speed.py MODEL CHATS.jsonl.gz [--rows 4] [--answer 48] [--steps 3] [--bf16] [--device cpu] [--each] [--whole]

The trainer is the library's, on rows of a real file; its steps are timed one by one and the first, which warms up, is left out.
`--each`: for comparison, autocast casts the weights for every token anew, as it does where nobody prevents it.
`--whole`: for comparison, teacher and student read all rows padded to the longest, instead of those of like length together.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import record

from opmix.cli.console import quiet_libraries
from opmix.domain import ChatOptions, Domain, Source
from opmix.mixing.mixture import Mixture
from opmix.models.device import default_device
from opmix.models.layers import model_shape
from opmix.models.load import load_model, load_tokenizer
from opmix.progress import Silent
from opmix.training import distillation
from opmix.training.distillation import DistillationTrainer, distillation_trainer, reverse_kl
from opmix.training.factory import TrainSpec
from opmix.training.like_lengths import answered_by_length
from opmix.training.objectives import Usage
from opmix.training.plan import plan_training
from opmix.training.settings import DistillationSettings
from opmix.training.stage_data import prepare_data


def trainer_of(args: argparse.Namespace, folder: Path) -> tuple[DistillationTrainer, Any]:
    """The library's trainer, and its rows."""
    tokenizer, model = load_tokenizer(args.model), load_model(args.model, dtype="float32", device=args.device)
    chat = Domain(
        name="chats",
        train=Source(paths=(str(args.chats.resolve()),)),
        chat=ChatOptions(supervise="last", packing=False),
    )
    data = prepare_data(
        {"chats": chat},
        tokenizer,
        objective="sdft",
        sdft=DistillationSettings(max_new_tokens=args.answer, skip_tokens=0),
        sequence_length=args.length,
        cache_dir=folder / "cache",
        num_proc=1,
        progress=Silent(),
    )
    told = {"batch": args.rows, "micro_batch": args.rows, "bf16": args.bf16, "learning_rate": 1e-5}
    plan = plan_training(
        data.train, Mixture.of({"chats": 1.0}), steps=args.steps + 1, arguments=told, seed=0, objective=data.objective
    )
    spec = TrainSpec(
        model=model, dataset=plan.dataset, output_dir=folder, steps=args.steps + 1, seed=0, arguments=plan.arguments
    )
    made = distillation_trainer(spec, objective=data.objective, usage=Usage(), shape=model_shape(model))  # type: ignore[arg-type]
    assert isinstance(made, DistillationTrainer)
    return made, plan.dataset


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """On the CPU its own seconds, all threads together: other people's work on a shared machine is not counted."""
    gpu = device.startswith("cuda")
    wait, clock = (torch.cuda.synchronize, time.perf_counter) if gpu else ((lambda: None), time.process_time)
    wait()
    started = clock()
    found = work()
    wait()
    return found, clock() - started


def one_step(
    trainer: DistillationTrainer, model: Any, batch: dict[str, torch.Tensor], device: str, whole: bool
) -> dict[str, float]:
    """Seconds and tokens of the three parts of a step."""
    (answer, mask), writing = timed(lambda: trainer.sample(model, batch["prompt_ids"], batch["prompt_mask"]), device)
    groups = list(answered_by_length({**batch, "answer_ids": answer, "answer_mask": mask}, whole=whole))
    teachers, reading = timed(lambda: [trainer._teacher_logits(model, group) for group in groups], device)

    def learn() -> None:
        total = torch.zeros((), device=device)
        for group, teacher in zip(groups, teachers, strict=True):
            student = trainer._logits(model, group, "prompt")
            total = total + (reverse_kl(student, teacher) * group["answer_mask"]).sum()
        total.div(mask.sum()).backward()

    _, learning = timed(learn, device)
    model.zero_grad(set_to_none=True)
    return {
        "writing": writing,
        "teacher": reading,
        "student": learning,
        "written": float(mask.sum()),
        "useful": float(batch["context_mask"].sum() + batch["prompt_mask"].sum() + 2 * mask.sum()),
        "groups": float(len(groups)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("chats", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--answer", type=int, default=48)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--device", default=str(default_device()))
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        trainer, rows = trainer_of(args, Path(folder))
        model = trainer.accelerator.prepare_model(trainer.model).train()
        if args.each:
            distillation.cast_once = lambda *_: nullcontext()  # type: ignore[assignment]
            trainer.accelerator.autocast = lambda *_, **__: nullcontext()
        found = []
        for index in range(args.steps + 1):
            batch = {k: v.to(args.device) for k, v in rows[index].items()}
            found.append(one_step(trainer, model, batch, args.device, args.whole))
    medians = {k: statistics.median(step[k] for step in found[1:]) for k in found[0]}
    seconds = medians["writing"] + medians["teacher"] + medians["student"]
    print(
        "| writing, s | teacher, s | student, s | step, s | written tokens/s | tokens read and written/s, without padding | groups |\n"
        "|---|---|---|---|---|---|---|"
    )
    print(
        f"| {medians['writing']:.2f} | {medians['teacher']:.2f} | {medians['student']:.2f} | {seconds:.2f} | "
        f"{medians['written'] / medians['writing']:.0f} | {medians['useful'] / seconds:.0f} | {medians['groups']:.0f} |"
    )
    if args.results:
        record(args.results, {"arguments": {k: str(v) for k, v in vars(args).items()}, "steps": found})


if __name__ == "__main__":
    main()
