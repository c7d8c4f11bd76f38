"""Learning-rate schedules in shares of a run, so that one configuration fits stages of any length (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {
    "wsd": "warmup_stable_decay",
    "cosine": "cosine_with_min_lr",
    "linear": "linear",
    "constant": "constant_with_warmup",
}


def schedule_arguments(
    steps: int, *, kind: str = "wsd", warmup: float = 0.02, decay: float = 0.1, final: float = 0.1
) -> dict[str, Any]:
    """`TrainingArguments` for a schedule over `steps` optimizer steps.

    Args:
        steps: Of the whole run.
        kind: `wsd` (warm-up, stable, decay: the paper's), `cosine`, `linear` (to zero) or `constant`.
        warmup: Share of the steps in which the rate rises (`wsd`: from its last rate, the others: from zero), in [0, 1).
        decay: `wsd`: share of the steps in which it falls at the end.
        final: `wsd` and `cosine`: the last rate as a share of the peak (the paper's: 0.1).

    Examples:
        >>> schedule_arguments(1000)["lr_scheduler_kwargs"]
        {'num_decay_steps': 100, 'min_lr_ratio': 0.1}
    """
    made: dict[str, Any] = {"lr_scheduler_type": _KINDS[kind], "warmup_steps": round(warmup * steps)}
    if kind == "wsd":
        made["lr_scheduler_kwargs"] = {"num_decay_steps": max(1, round(decay * steps)), "min_lr_ratio": final}
    elif kind == "cosine":
        made["lr_scheduler_kwargs"] = {"min_lr_rate": final}
    return made


def with_schedule(arguments: Mapping[str, Any], steps: int, schedule: Mapping[str, Any] | None) -> dict[str, Any]:
    """Trainer arguments with a schedule added; what the user's own arguments say of a schedule is kept as it is."""
    own = {"lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"}
    if own & set(arguments) and schedule is None:
        return dict(arguments)
    return {**arguments, **schedule_arguments(steps, **(schedule or {}))}
