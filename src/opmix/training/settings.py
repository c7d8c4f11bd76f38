"""Settings of self-distillation. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from opmix.errors import ConfigError
from opmix.settings import Bounds, Count, Positive, changed, settings

ObjectiveName = Literal["causal_lm", "sft", "sdft"]
"""What is learned: every token of texts; the answers of conversations; or self-distillation on their prompts."""

DEMONSTRATION = (
    "{prompt}\n\nAn example of a good response:\n{demonstration}\n\nNow respond yourself, in your own words."
)


@settings
class DistillationSettings:
    """Self-distillation (arXiv 2601.19897): the model, shown a demonstration, teaches the model that was not."""

    demonstration: str = ""
    """What the teacher is asked: text with `{prompt}` and `{demonstration}`. Empty: both, or with a `teacher_model` just `{prompt}`."""
    teacher: Literal["ema", "frozen", "live"] = "ema"
    """Weights that follow the student's slowly, those it started from, or its own."""
    teacher_model: str | None = None
    """Another model with the same vocabulary as the teacher: on-policy distillation."""
    ema_rate: Annotated[float, Bounds(gt=0, le=1)] = 0.01
    """Share of the student in the teacher's weights that each step adds."""
    max_new_tokens: Count = 256
    """The student writes at most."""
    temperature: Positive = 1.0
    skip_tokens: Annotated[int, Bounds(ge=0)] = 3
    """First tokens of an answer that are not learned from (paper's code: 3)."""

    def __post_init__(self) -> None:
        alone = self.teacher_model is None
        if not self.demonstration:
            object.__setattr__(self, "demonstration", DEMONSTRATION if alone else "{prompt}")
        needed = ("{prompt}", "{demonstration}") if alone else ("{prompt}",)
        if missing := [p for p in needed if p not in self.demonstration]:
            raise ConfigError(f"demonstration: has no {missing[0]}; expected {' and '.join(needed)}")

    def located(self, base: Path) -> DistillationSettings:
        """With the teacher's folder found beside the configuration."""
        from opmix.models.files import located

        name = self.teacher_model
        return self if name is None else changed(self, teacher_model=located(name, base))
