"""Which row comes when, where rows are worth different numbers of supervised tokens.

Every domain reads its rows at its own pace: a row is due when half of it should have been read, that is at (tokens of the domain before it
+ half its own) / share on the common clock of supervised tokens. Up to any moment of that clock each domain is then within half a row of
its share, so realised shares need no luck, and neither does the total.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from opmix.data.rows import Int64
from opmix.data.sampler import MixturePlan, Plan, check_repetition, draw
from opmix.errors import DataError
from opmix.mixing.mixture import Mixture


def plan_supervised(
    mixture: Mixture,
    tokens: float,
    worth: Mapping[str, Int64],
    *,
    seed: int,
    min_rows: int = 1,
    max_epochs: Mapping[str, float] | None = None,
    previous: Plan | None = None,
) -> MixturePlan:
    """Plan a stretch of `tokens` supervised tokens on `mixture`.

    Args:
        mixture: Shares of supervised tokens.
        tokens: To read; what is read differs by at most half a row of each domain.
        worth: By domain, (rows,) supervised tokens of each row, all positive.
        seed: Of the permutations, see `plan_mixture`.
        min_rows: Go on until there are that many.
        max_epochs: Epochs each domain may be used, counted over all phases; absent: no limit.
        previous: Plan to append to.

    Raises:
        DataError: A domain with a share has no rows, or would be used more often than `max_epochs`.

    Examples:
        >>> worth = {"long": np.full(50, 30), "short": np.full(50, 10)}
        >>> plan_supervised(Mixture.of({"long": 0.5, "short": 0.5}), 240, worth, seed=0).counts()
        {'long': 4, 'short': 12}
    """
    old = () if previous is None else previous.names
    names = old + tuple(name for name in mixture.names if name not in old)
    missing = [name for name in names if name not in worth]
    if missing:
        raise DataError(f"domain {missing[0]!r}: no rows; expected some for each of {list(names)}")
    mixture, available = mixture.on(names), tuple(len(worth[name]) for name in names)
    if previous is not None and (previous.seed != seed or previous.available != available[: len(old)]):
        raise DataError(
            "the previous phase was planned with another seed or other data; a stream must be planned as one"
        )
    cursors = {} if previous is None else previous.cursors()
    due: list[npt.NDArray[np.float64]] = []
    rows: list[Int64] = []
    whole = tokens
    for _ in range(64):  # a stretch of very few rows: longer, until there are enough
        due, rows = [], []
        for name in names:
            taken, when = _paced(name, mixture[name], whole, worth[name], seed, cursors.get(name, 0))
            taken, when = _within_limit(
                name, mixture, whole, worth[name], cursors.get(name, 0), max_epochs, taken, when
            )
            rows.append(taken)
            due.append(when)
        if sum(map(len, rows)) >= min_rows:
            break
        whole *= 1.25
    domain = np.repeat(np.arange(len(names), dtype=np.int16), [len(r) for r in rows])
    order = np.argsort(np.concatenate(due), kind="stable")
    domain, row = domain[order], np.concatenate(rows)[order]
    if previous is not None:
        earlier = previous.at(np.arange(len(previous)))
        domain = np.concatenate([earlier[0].astype(np.int16), domain])
        row = np.concatenate([earlier[1], row])
    before = () if previous is None or not previous.before else previous.before
    before += (0,) * (len(names) - len(before)) if before else ()
    return MixturePlan(names, domain, row, available, seed, before)


def _paced(
    name: str, share: float, tokens: float, worth: Int64, seed: int, first: int
) -> tuple[Int64, npt.NDArray[np.float64]]:
    """The domain's rows from its `first` one on that are due by `tokens`, and when each is."""
    if share <= 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    if not len(worth):
        raise DataError(f"domain {name!r}: weight {share:.4g} but no training row; give it more data or weight 0")
    num = int(share * tokens / worth.mean() * 1.1) + 8
    while True:
        rows = draw(name, seed, first, num, len(worth))
        each = worth[rows].astype(np.float64)
        due = (np.cumsum(each) - each / 2) / share
        if due[-1] > tokens:
            kept = int(np.searchsorted(due, tokens * (1 + 1e-12), side="right"))
            return rows[:kept], due[:kept]
        num *= 2


def _within_limit(
    name: str,
    mixture: Mixture,
    tokens: float,
    worth: Int64,
    used: int,
    limits: Mapping[str, float] | None,
    rows: Int64,
    due: npt.NDArray[np.float64],
) -> tuple[Int64, npt.NDArray[np.float64]]:
    """Rows that `max_epochs` allows; a few too many by chance are left out, more are an error."""
    limit = (limits or {}).get(name)
    if limit is None or not len(rows):
        return rows, due
    allowed = int(np.floor(limit * len(worth) + 1e-9)) - used
    wanted = mixture[name] * tokens / float(worth.mean())
    if wanted > allowed + 1:
        check_repetition(name, mixture[name], used + max(len(rows), round(wanted)), len(worth), limit, None)
    return rows[: max(allowed, 0)], due[: max(allowed, 0)]
