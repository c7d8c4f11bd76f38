"""How the tables of docs/evidence.md are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(x) for x in line) + " |" for line in lines)


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation over seeds or lives."""
    mean = format(float(np.mean(values)), form)
    if len(values) < 2:
        return mean
    return f"{mean} ± {format(float(np.std(values, ddof=1)), form.lstrip('+'))}"
