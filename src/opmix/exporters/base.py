"""The seam: a mixture in, one trainer's own file out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from opmix.errors import ConfigError
from opmix.exporters.plan import MixturePlan, Unit

REPEATED = 1 + 1e-6
"""Epochs above this repeat documents."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A file that a trainer reads."""

    text: str
    unit: Unit
    weights: Mapping[str, float]
    """The number that the file has for each domain, in `unit` and relative to what the trainer takes it for."""
    warnings: tuple[str, ...] = ()
    """What the format cannot say; also in the file's header."""
    notes: tuple[str, ...] = ()
    """What the reader has to fill in or know; also in the file's header."""
    companions: Mapping[str, str] = field(default_factory=dict)
    """Further files that belong beside it, by name."""


class MixtureExporter(Protocol):
    """One trainer's format."""

    name: str
    """As in `opmix export RUN --to NAME`."""
    trainer: str
    """For people."""
    unit: Unit
    """What its weights weigh (by default, where it takes more than one)."""
    suffix: str
    """Of the file."""
    limits: str
    """What the format cannot express, in one sentence."""

    def export(self, plan: MixturePlan) -> Export:
        """The file for a mixture.

        Raises:
            ConfigError: The format cannot express the mixture, or something that it needs is not known.
            DataError: A domain's source is of a kind that the trainer does not read.
        """
        ...


def assemble(
    exporter: MixtureExporter,
    plan: MixturePlan,
    weights: Mapping[str, float],
    body: str,
    *,
    unit: Unit | None = None,
    meaning: str | None = None,
    warnings: Iterable[str] = (),
    notes: Iterable[str] = (),
    companions: Mapping[str, str] | None = None,
) -> Export:
    """The body under comment lines that say where the numbers come from, their unit, shares and epochs."""
    unit, warnings, notes = unit or exporter.unit, tuple(warnings), tuple(notes)
    epochs = plan.known_epochs()
    budget = f"Budget: {plan.budget:,} tokens." if plan.budget is not None else "No budget given, so no epochs."
    lines = [
        f"{exporter.trainer}: mixture of {plan.origin}, written by `opmix export --to {exporter.name}`.",
        f"Unit of the weights: {meaning or _UNITS[unit]}. {budget}",
    ]
    width = max(len(name) for name in plan.names)
    for domain in plan.domains:
        seen = f", {epochs[domain.name]:.3g} epochs" if domain.name in epochs else ""
        lines.append(
            f"  {domain.name:<{width}}  {domain.share:.4f} of the tokens, weight {weights[domain.name]:.9g}{seen}"
        )
    if plan.dropped:
        lines.append(f"Left out (share 0): {', '.join(plan.dropped)}.")
    lines += [f"Warning: {warning}." for warning in warnings] + [f"Note: {note}." for note in notes]
    text = "".join(f"# {printable(line)}\n" for line in lines) + body
    return Export(
        text=text, unit=unit, weights=weights, warnings=warnings, notes=notes, companions=dict(companions or {})
    )


def printable(line: str) -> str:
    r"""Text that stays on its comment line: line breaks and other control characters are written out.

    Examples:
        >>> printable("web\ntouch X")
        'web\\ntouch X'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


_UNITS: dict[Unit, str] = {
    "documents": "documents (token share over mean tokens per document)",
    "sequences": "sequences of equal length, so tokens",
    "tokens": "tokens",
}


def yaml_text(content: Mapping[str, Any]) -> str:
    """A mapping as YAML in its own order."""
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=10_000)


def python_literal(mapping: Mapping[str, Any]) -> str:
    """A mapping as Python source, one entry a line."""
    return "{\n" + "".join(f"    {key!r}: {value!r},\n" for key, value in mapping.items()) + "}"


def sample_unit(exporter: MixtureExporter, plan: MixturePlan) -> tuple[Unit, dict[str, float], int | None]:
    """For trainers whose samples are whatever the user wrote: unit, weights, and samples in the budget.

    Raises:
        ConfigError: Documents are asked for and their lengths are not known.
    """
    unit = plan.unit or exporter.unit
    if unit == "documents":
        return unit, plan.row_shares(), plan.rows()
    return "sequences", plan.shares, plan.sequences()


def check_unit(exporter: MixtureExporter, plan: MixturePlan) -> None:
    """Refuse a unit that is not the exporter's one.

    Raises:
        ConfigError: The user asked for another.
    """
    if plan.unit not in (None, exporter.unit):
        raise ConfigError(
            f"--unit: {plan.unit}; {exporter.trainer} weighs {exporter.unit} and nothing else; leave --unit out"
        )


def repetition_warning(plan: MixturePlan, consequence: str) -> tuple[str, ...]:
    """One sentence naming the domains that the budget repeats, if there are any."""
    repeated = [f"{name} ({seen:.3g})" for name, seen in plan.known_epochs().items() if seen > REPEATED]
    return (f"the budget needs more than one epoch of {', '.join(repeated)}; {consequence}",) if repeated else ()
