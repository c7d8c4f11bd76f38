"""Plans of long runs: one cycle is scheduled and repeated, so that a plan is as small for 10^9 sequences as for 10^7.

Index n lies in turn n // B of a cycle of B sequences, at place n % B. Domain k has e_k whole sequences in a cycle and stands at exactly
t e_k after t turns; inside a turn the schedule keeps it within one sequence of its share e_k / B (see `sampler.schedule`), and so in
every prefix of any length. Rows are a keyed permutation of each epoch that is computed where it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from opmix.data.joined_plan import JoinedPlan, inside
from opmix.data.sampler import MixturePlan, Plan, check_repetition, continued, integer_shares, plan_mixture, schedule
from opmix.mixing.mixture import Mixture

Int64 = npt.NDArray[np.int64]
Uint64 = npt.NDArray[np.uint64]

PERIODIC_FROM = 1 << 22
"""Sequences of a stretch from which its plan is periodic: as an array it would take 40 MB and seconds, growing with its length."""
PERMUTED_TO = 1 << 26
"""Sequences of a domain up to which an epoch's order is an array, of half a gigabyte at most: those of longer ones are computed, however
short the stretch."""
LONGEST_CYCLE = 1 << 17
"""Sequences. Shares that are fractions of no more are kept exactly, others to less than two in so many."""
_FEW = 64
"""Domains up to which the length of a cycle is chosen so that shares come out nearest; with more no length is much better."""
_ROUNDS = 6
_ROUND = np.uint64(0xD1B54A32D192ED03)
"""What a key grows by from round to round: odd, its bits without a pattern."""


@dataclass(frozen=True, eq=False)
class Cycle:
    """One turn of B sequences of D domains."""

    order: npt.NDArray[np.int16]
    """(B,) domain at each place."""
    rank: Int64
    """(B,) which of its domain's sequences of the turn comes there, from 0."""
    each: Int64
    """(D,) sequences of each domain in a turn."""

    @classmethod
    def of(cls, shares: npt.NDArray[np.float64]) -> Cycle:
        """Return the cycle for shares (D,) that sum to one."""
        each, whole = integer_shares(shares)
        if whole > LONGEST_CYCLE:
            each, whole = _rounded(shares)
        order = schedule(each, whole, whole)
        counts, rank = np.asarray(each, dtype=np.int64), np.empty(whole, dtype=np.int64)
        rank[np.argsort(order, kind="stable")] = np.arange(whole) - np.repeat(np.cumsum(counts) - counts, counts)
        return cls(order, rank, counts)

    def drawn(self, num: int) -> Int64:
        """Sequences of each domain among the first `num`, (D,)."""
        turns, rest = divmod(num, len(self.order))
        return turns * self.each + np.bincount(self.order[:rest], minlength=len(self.each))


@dataclass(frozen=True, eq=False)
class PeriodicPlan:
    """A stretch of a cycle that goes on for ever; see `Plan`."""

    names: tuple[str, ...]
    available: tuple[int, ...]
    seed: int
    cycle: Cycle
    start: tuple[int, ...]
    """Sequences of each domain drawn before the cycle's first."""
    first: int
    """Where in the turning cycle this stretch begins."""
    length: int

    def __len__(self) -> int:
        return self.length

    def at(self, index: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Domains and rows at some indices."""
        asked = inside(index, self.length)
        place = np.atleast_1d(asked) + self.first  # numpy warns of overflow in numbers, not in arrays
        turn, place = np.divmod(place, len(self.cycle.order))
        domain = self.cycle.order[place].astype(np.int64)
        drawn = np.asarray(self.start, dtype=np.int64)[domain] + turn * self.cycle.each[domain] + self.cycle.rank[place]
        sizes = np.asarray(self.available, dtype=np.int64)
        epoch, within = np.divmod(drawn, sizes[domain])
        row = permuted(within, sizes[domain], _mixed(self._keys[domain] + _mixed(epoch.astype(np.uint64))))
        return domain.reshape(asked.shape), row.reshape(asked.shape)

    @cached_property
    def _keys(self) -> Uint64:
        """Of the domains' permutations, (D,)."""
        named = (f"periodic|{self.seed}|{name}".encode() for name in self.names)
        return np.array([int.from_bytes(hashlib.blake2b(n, digest_size=8).digest(), "little") for n in named], "<u8")

    def __getitem__(self, part: slice) -> PeriodicPlan:
        """A stretch of the stream."""
        start, stop, step = part.indices(self.length)
        if step != 1:
            raise ValueError(f"plan[::{step}]: a stretch of the stream has step 1")
        return replace(self, first=self.first + start, length=max(0, stop - start))

    @property
    def before(self) -> tuple[int, ...]:
        """Sequences of each domain drawn ahead of the first index."""
        return tuple((np.asarray(self.start) + self.cycle.drawn(self.first)).tolist())

    def cursors(self) -> dict[str, int]:
        """Sequences of each domain drawn up to the end of this stretch, those before it included."""
        ends = np.asarray(self.start) + self.cycle.drawn(self.first + self.length)
        return dict(zip(self.names, ends.tolist(), strict=True))

    def counts(self) -> dict[str, int]:
        """Sequences drawn of each domain."""
        drawn = self.cycle.drawn(self.first + self.length) - self.cycle.drawn(self.first)
        return dict(zip(self.names, drawn.tolist(), strict=True))

    @property
    def fingerprint(self) -> str:
        """Hash of what the order is computed from."""
        parts = (self.names, self.available, self.seed, self.cycle.each.tolist(), self.start, self.first, self.length)
        return hashlib.blake2b(repr(("periodic-1", *parts)).encode(), digest_size=16).hexdigest()


def plan_stretch(
    mixture: Mixture,
    num_sequences: int,
    available: Mapping[str, int],
    *,
    seed: int,
    max_epochs: Mapping[str, float] | None = None,
    previous: Plan | None = None,
    sequence_length: int | None = None,
) -> Plan:
    """Plan a stretch of any length on `mixture`: as an array, or as a cycle where it is long.

    Long is a stretch of `PERIODIC_FROM` sequences, one that follows such a one, and one over a domain of more than `PERMUTED_TO`.
    The two kinds read a domain in different orders. Where one follows the other, each domain's epoch that is under way is finished in
    the new order, so that inside it a sequence may come twice and another not at all.

    Raises:
        DataError: As `plan_mixture`.
    """
    small = num_sequences < PERIODIC_FROM and max(available.values(), default=0) <= PERMUTED_TO
    small = small and (previous is None or isinstance(previous, MixturePlan))
    plan: Callable[..., Plan] = plan_mixture if small else plan_periodic
    return plan(
        mixture,
        num_sequences,
        available,
        seed=seed,
        max_epochs=max_epochs,
        previous=previous,
        sequence_length=sequence_length,
    )


def plan_periodic(
    mixture: Mixture,
    num_sequences: int,
    available: Mapping[str, int],
    *,
    seed: int,
    max_epochs: Mapping[str, float] | None = None,
    previous: Plan | None = None,
    sequence_length: int | None = None,
) -> Plan:
    """Plan a stretch as a cycle; arguments and errors are those of `plan_mixture`.

    Every prefix n has |count_k - p_k n| < 1 for the shares p of the cycle. These are the mixture's where it is of fractions of at most
    `LONGEST_CYCLE`, else they differ by less than 2 / `LONGEST_CYCLE`.

    Examples:
        >>> plan = plan_periodic(Mixture.of({"a": 0.75, "b": 0.25}), 10**9, {"a": 10**9, "b": 10**9}, seed=0)
        >>> len(plan), plan.counts()
        (1000000000, {'a': 750000000, 'b': 250000000})
    """
    mixture, start = continued(mixture, available, seed, previous)
    names = mixture.names
    sizes = tuple(available[name] for name in names)
    plan = PeriodicPlan(names, sizes, seed, Cycle.of(mixture.weights), start, 0, num_sequences)
    for name, total in plan.cursors().items():
        check_repetition(name, mixture[name], total, available[name], (max_epochs or {}).get(name), sequence_length)
    if previous is None or not len(previous):
        return plan
    parts = previous.parts if isinstance(previous, JoinedPlan) else (previous,)
    return JoinedPlan((*parts, plan), names, sizes, seed)


def permuted(index: Int64, size: Int64, key: Uint64) -> Int64:
    """Where a keyed permutation of 0 .. size - 1 sends an index; arrays of one shape, element by element.

    A balanced Feistel network on the smallest even number of bits that holds `size` (Luby and Rackoff, 1988), walked on until it is back
    inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): four steps on average at most.
    """
    whole = size.astype(np.uint64)
    half = _half_bits(whole)
    found = _network(index.astype(np.uint64), half, key)
    while (out := found >= whole).any():
        found[out] = _network(found[out], half[out], key[out])
    return found.astype(np.int64)


def _network(x: Uint64, half: Uint64, key: Uint64) -> Uint64:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for _ in range(_ROUNDS):
        key = key + _ROUND
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _half_bits(size: Uint64) -> Uint64:
    """Half of the bits that hold 0 .. size - 1, rounded up, at least one."""
    half = np.ones_like(size)
    while (small := (np.uint64(1) << (half + half)) < size).any():
        half += small
    return half


def _mixed(x: Uint64) -> Uint64:
    """SplitMix64's output function (Steele, Lea and Flood, 2014): every bit depends on every bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _rounded(shares: npt.NDArray[np.float64]) -> tuple[list[int], int]:
    """Whole sequences of each domain in a cycle, and its length: the nearest to the shares by largest remainder."""
    whole = LONGEST_CYCLE
    if len(shares) <= _FEW:
        lengths = np.arange(LONGEST_CYCLE // 2, LONGEST_CYCLE + 1)
        worst = np.zeros(len(lengths))
        for share in shares:
            exact = lengths * share
            np.maximum(worst, np.abs(exact - np.round(exact)) / lengths, out=worst)
        whole = int(lengths[np.argmin(worst)])
    exact = shares * whole
    each = np.floor(exact).astype(np.int64)
    each[np.argsort(-(exact - each), kind="stable")[: whole - int(each.sum())]] += 1
    return each.tolist(), whole
