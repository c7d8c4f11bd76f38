"""Which sequence comes when: a token-exact, seekable plan of a training stream.

The plan is one array computed beforehand, so order, ranks, workers and resuming are facts of that array and not of a loader's state.
Every prefix of a phase is within one sequence of the mixture for *every* domain. Largest-remainder and greatest-error rules
do not guarantee that for three or more domains; scheduling each occurrence inside its window, earliest deadline first, does
(Tijdeman, "The chairman assignment problem", 1980).
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from opmix.errors import DataError
from opmix.mixing.mixture import Mixture

_SCALE = 1 << 48  # shares as integers: exact windows, no float drift over billions of draws


class Plan(Protocol):
    """Domain and sequence at every index of a training stream: as an array (`MixturePlan`) or computed (`periodic`)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Domains."""

    @property
    def available(self) -> tuple[int, ...]:
        """Sequences each domain has."""

    @property
    def seed(self) -> int:
        """Of the permutations."""

    @property
    def before(self) -> tuple[int, ...]:
        """Sequences of each domain drawn ahead of the first index; empty: none."""

    def __len__(self) -> int:
        """Sequences."""

    def at(self, index: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Domains (as indices into `names`) and rows at some indices, both of the shape of `index`."""

    def __getitem__(self, part: slice) -> Plan:
        """A stretch of the stream, such as what is left after a resume."""

    def cursors(self) -> dict[str, int]:
        """Sequences of each domain drawn up to the end of this stretch, those before it included."""

    def counts(self) -> dict[str, int]:
        """Sequences drawn of each domain."""

    @property
    def fingerprint(self) -> str:
        """Hash of the order."""


@dataclass(frozen=True, eq=False)
class MixturePlan:
    """Domain and sequence at every index of a training stream, as arrays; see `Plan`.

    Attributes:
        names: Domains.
        domain: (N,) int16, index into `names`.
        row: (N,) int64, sequence of that domain.
        available: Sequences each domain has.
        seed: Of the permutations.
        before: Sequences of each domain drawn ahead of the first index; empty: none. A slice's, so that a phase
            appended to it goes on where the slice ends.
    """

    names: tuple[str, ...]
    domain: npt.NDArray[np.int16]
    row: npt.NDArray[np.int64]
    available: tuple[int, ...]
    seed: int
    before: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.domain)

    def at(self, index: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Domains (as indices into `names`) and rows at some indices."""
        index = np.asarray(index, dtype=np.int64)
        return np.asarray(self.domain[index], dtype=np.int64), np.asarray(self.row[index], dtype=np.int64)

    def __getitem__(self, part: slice) -> MixturePlan:
        """A stretch of the stream, such as what is left after a resume."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"plan[::{step}]: a stretch of the stream has step 1")
        before = np.bincount(self.domain[:start], minlength=len(self.names))
        before = before + np.array(self.before or (0,) * len(self.names))
        domain, row = self.domain[start:stop], self.row[start:stop]
        return MixturePlan(self.names, domain, row, self.available, self.seed, tuple(map(int, before)))

    def cursors(self) -> dict[str, int]:
        """Sequences of each domain drawn up to the end of this stretch, those before it included."""
        before = self.before or (0,) * len(self.names)
        return {name: n + b for (name, n), b in zip(self.counts().items(), before, strict=True)}

    def counts(self) -> dict[str, int]:
        """Sequences drawn of each domain."""
        drawn = np.bincount(self.domain, minlength=len(self.names))
        return {name: int(n) for name, n in zip(self.names, drawn, strict=True)}

    def repetitions(self) -> dict[str, float]:
        """Epochs of each domain that the stream uses."""
        return {n: c / a if a else 0.0 for (n, c), a in zip(self.counts().items(), self.available, strict=True)}

    @property
    def fingerprint(self) -> str:
        """Hash of the order."""
        digest = hashlib.blake2b(repr((self.names, self.available)).encode(), digest_size=16)
        digest.update(self.domain.tobytes())
        digest.update(self.row.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write as `.npz`, whole or not at all."""
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as file:
            np.savez(
                file,
                names=np.array(self.names),
                domain=self.domain,
                row=self.row,
                available=self.available,
                seed=self.seed,
                before=np.array(self.before, dtype=np.int64),
            )
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> MixturePlan:
        """Read what `save` wrote."""
        with np.load(path) as a:
            names, available = tuple(map(str, a["names"])), tuple(map(int, a["available"]))
            return cls(names, a["domain"], a["row"], available, int(a["seed"]), tuple(map(int, a["before"])))


def plan_mixture(
    mixture: Mixture,
    num_sequences: int,
    available: Mapping[str, int],
    *,
    seed: int,
    max_epochs: Mapping[str, float] | None = None,
    previous: MixturePlan | None = None,
    sequence_length: int | None = None,
) -> MixturePlan:
    """Plan a stretch of `num_sequences` on `mixture`.

    Args:
        mixture: Token shares; sequences are of equal length, so shares of sequences are shares of tokens.
        num_sequences: N.
        available: Training sequences per domain.
        seed: Of the permutations: epoch e of a domain is a permutation of (seed, name, e), reshuffled every epoch.
        max_epochs: Epochs each domain may be used, counted over all phases; absent: no limit.
        previous: Plan to append to: the mixture changes here, cursors go on.
        sequence_length: Tokens of a sequence, for messages.

    Raises:
        DataError: A domain with a share has no sequences, or would be used more often than `max_epochs`.

    Examples:
        >>> plan = plan_mixture(Mixture.of({"a": 0.75, "b": 0.25}), 8, {"a": 4, "b": 4}, seed=0)
        >>> plan.counts(), plan.repetitions()["a"]
        ({'a': 6, 'b': 2}, 1.5)
    """
    mixture, used = continued(mixture, available, seed, previous)
    names = mixture.names
    order = schedule(*integer_shares(mixture.weights), num_sequences)
    rows = np.empty(num_sequences, dtype=np.int64)
    ends = np.cumsum(np.bincount(order, minlength=len(names)))[:-1]
    places = np.split(
        np.argsort(order, kind="stable"), ends
    )  # sorted once: a look at all indices for each domain is D N
    for k, (name, where) in enumerate(zip(names, places, strict=True)):
        total = used[k] + len(where)
        check_repetition(name, mixture[name], total, available[name], (max_epochs or {}).get(name), sequence_length)
        rows[where] = draw(name, seed, used[k], len(where), available[name])
    if previous is not None:
        order, rows = np.concatenate([previous.domain, order]), np.concatenate([previous.row, rows])
    before = () if previous is None or not previous.before else previous.before
    before += (0,) * (len(names) - len(before)) if before else ()
    return MixturePlan(names, order, rows, tuple(available[n] for n in names), seed, before)


def continued(
    mixture: Mixture, available: Mapping[str, int], seed: int, previous: Plan | None
) -> tuple[Mixture, tuple[int, ...]]:
    """A mixture over the domains of the whole stream, and how many sequences of each were drawn before.

    Raises:
        DataError: A domain without a count, or a previous phase of another seed or other data.
    """
    old = () if previous is None else previous.names
    names = old + tuple(name for name in mixture.names if name not in old)
    missing = [name for name in names if name not in available]
    if missing:
        raise DataError(f"domain {missing[0]!r}: no count of its sequences; expected one for each of {list(names)}")
    if previous is not None and (previous.seed != seed or previous.available != tuple(available[n] for n in old)):
        raise DataError(
            "the previous phase was planned with another seed or other data; a stream must be planned as one"
        )
    cursors = {} if previous is None else previous.cursors()
    return mixture.on(names), tuple(cursors.get(name, 0) for name in names)


def schedule(scaled: Sequence[int], whole: int, num: int) -> npt.NDArray[np.int16]:
    """Order of domains in which every prefix n has |count_k - n scaled_k / whole| < 1 for every k; after `whole` the counts are exact."""
    order = np.empty(num, dtype=np.int16)
    # Occurrence c of domain k may come from step floor(c / p) + 1 on and must have come by step ceil((c + 1) / p).
    waiting: list[tuple[int, int, int]] = [(1, k, 0) for k, a in enumerate(scaled) if a > 0]
    ready: list[tuple[int, int, int]] = []
    heapq.heapify(waiting)
    for step in range(1, num + 1):
        while waiting and waiting[0][0] <= step:
            _, k, c = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(c + 1) * whole // scaled[k]), k, c))
        _, k, c = heapq.heappop(ready)
        order[step - 1] = k
        heapq.heappush(waiting, ((c + 1) * whole // scaled[k] + 1, k, c + 1))
    return order


def integer_shares(shares: npt.NDArray[np.float64]) -> tuple[list[int], int]:
    """Shares as integers of a whole: exact where they are simple fractions, else to 2^-48."""
    simple = [Fraction(float(s)).limit_denominator(100_000) for s in shares]
    if sum(simple) == 1 and all(abs(float(f) - s) < 1e-12 for f, s in zip(simple, shares, strict=True)):
        whole = math.lcm(*(f.denominator for f in simple))
        if whole < _SCALE:
            return [int(f * whole) for f in simple], whole
    scaled = [round(float(s) * _SCALE) for s in shares]
    scaled[int(np.argmax(shares))] += _SCALE - sum(scaled)
    return scaled, _SCALE


def draw(name: str, seed: int, first: int, num: int, available: int) -> npt.NDArray[np.int64]:
    """Occurrences first .. first + num of a domain: its epochs' permutations end to end."""
    if num == 0:
        return np.empty(0, dtype=np.int64)
    epochs = range(first // available, (first + num - 1) // available + 1)
    orders = [_generator(seed, name, epoch).permutation(available) for epoch in epochs]
    skip = first - epochs[0] * available
    return np.concatenate(orders)[skip : skip + num]


def _generator(seed: int, name: str, epoch: int) -> np.random.Generator:
    key = hashlib.blake2b(f"{seed}|{name}|{epoch}".encode(), digest_size=8).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))


def check_repetition(
    name: str, share: float, drawn: int, available: int, limit: float | None, length: int | None
) -> None:
    """Refuse what a domain has not got.

    Raises:
        DataError: Sequences are wanted and there are none, or more than `limit` epochs of them.
    """
    if drawn and not available:
        raise DataError(f"domain {name!r}: weight {share:.4g} but no training sequence; give it more text or weight 0")
    if limit is None or drawn <= np.floor(limit * available + 1e-9):
        return
    unit, factor = ("tokens", length) if length else ("sequences", 1)
    numbers: list[Any] = [drawn * factor, available * factor]
    raise DataError(
        f"domain {name!r}: weight {share:.4g} asks for {numbers[0]:.4g} {unit}, the source has {numbers[1]:.4g} at "
        f"max_epochs={limit:g}; "
        f"raise max_epochs to {drawn / available:.3g} or cap the weight"
    )
