"""`opmix eval`: task scores of a model, or of two on the same items."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opmix.cli.options import AsJson
from opmix.compute.budget import speaks

if TYPE_CHECKING:
    from opmix.scores import Difference, TaskScore


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or hub name, or a run folder of `opmix run`.")],
    tasks: Annotated[str | None, typer.Option("--tasks", help="lm-evaluation-harness tasks: a,b.")] = None,
    include_path: Annotated[Path | None, typer.Option("--include-path", help="Folder of your own task YAMLs.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Items of a task or file at most.")] = None,
    num_fewshot: Annotated[int | None, typer.Option("--num-fewshot", help="Examples before each item.")] = None,
    chat: Annotated[bool, typer.Option("--chat-template", help="Tasks in the model's chat template.")] = False,
    domain: Annotated[
        Path | None, typer.Option("--domain", help="File of conversations, or of questions with options.")
    ] = None,
    extractor: Annotated[
        str,
        typer.Option(
            "--extractor",
            help="What is compared: exact, number, first_word, json, regex:PATTERN.",
            autocompletion=lambda: ["exact", "number", "first_word", "json", "regex:"],
        ),
    ] = "exact",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Of an answer to --domain.")] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Items at a time.")] = 16,
    stage: Annotated[str | None, typer.Option("--stage", help="Of a run folder: this stage's model.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of a run folder: this life.")] = None,
    against: Annotated[str | None, typer.Option("--against", help="Second model or run, on the same items.")] = None,
    against_stage: Annotated[str | None, typer.Option("--against-stage", help="Of the second run folder.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Task scores with intervals; with --against, the paired difference of two models."""
    from opmix.cli.console import Display, quiet_libraries

    with Display(silent=as_json or not speaks()) as display:
        display.note("loading torch and transformers")
        quiet_libraries()
        from opmix.lifecycle.evaluation import Wanted, differences, evaluate_model, find_model

        wanted = Wanted(
            tasks=tuple(name.strip() for name in (tasks or "").split(",") if name.strip()),
            include_path=include_path,
            num_fewshot=num_fewshot,
            chat=chat,
            domain=domain,
            extractor=extractor,
            max_new_tokens=max_new_tokens,
            limit=limit,
            batch_size=batch_size,
        )
        paths = [find_model(model, stage=stage, seed=seed)]
        if against is not None:
            # The seed is of the first run; another run may have others.
            same = seed if against == model else None
            paths.append(find_model(against, stage=against_stage, seed=same))
        scores = [evaluate_model(path, wanted, display) for path in paths]
    if not speaks():
        return
    found = differences(*scores) if len(scores) == 2 else []
    content: dict[str, Any] = {
        "models": [{"model": p, "scores": [s.json() for s in many]} for p, many in zip(paths, scores, strict=True)],
        "differences": [difference.json() for difference in found],
    }
    if out is not None:
        from opmix.runs.files import write_json

        write_json(out, content)
    if as_json:
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        _show(paths, scores, found)


def _show(paths: Sequence[str], scores: Sequence[Sequence[TaskScore]], found: Sequence[Difference]) -> None:
    from opmix.progress.display import table, terminal

    console = terminal()
    for path, many in zip(paths, scores, strict=True):
        shown = table("task", "metric", "score", "95 %", "items", title=path)
        for s in many:
            shown.add_row(
                s.task, s.metric, f"{s.value:.4f}", _interval(s.interval), "" if s.total is None else str(s.total)
            )
        console.print(shown)
        for s in many:
            if s.details.get("left_out"):
                console.print(f"note: {s.task}: {s.details['left_out']} questions too long for the model, left out")
    if found:
        shown = table(
            "task", "metric", "difference", "95 %", "items", "McNemar p", title="First less second, same items"
        )
        for d in found:
            p = "" if d.p_value is None else f"{d.p_value:.3g}"
            shown.add_row(d.task, d.metric, f"{d.difference:+.4f}", _interval(d.interval), str(d.total), p)
        console.print(shown)


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
