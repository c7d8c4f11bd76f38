"""The plan: within one sequence of the mixture at every prefix, epochs without repeats, phases that join."""

from __future__ import annotations

import math
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opmix.data.sampler import MixturePlan, integer_shares, plan_mixture
from opmix.errors import DataError
from opmix.mixing.mixture import Mixture

WEIGHTS = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-9, 1e-3), st.floats(1e-3, 1.0)), min_size=1, max_size=20
).filter(lambda w: sum(w) > 0)


def mix(weights: list[float]) -> Mixture:
    return Mixture.normalised({f"d{k}": w for k, w in enumerate(weights)})


def plan_of(weights: list[float], n: int, rows: int = 50, **options: object) -> MixturePlan:
    mixture = mix(weights)
    return plan_mixture(mixture, n, dict.fromkeys(mixture, rows), seed=0, **options)  # type: ignore[arg-type]


def worst_lag(plan: MixturePlan, shares: list[Fraction]) -> Fraction:
    """The largest |count_k(n) - p_k n| over all prefixes, in exact arithmetic."""
    whole = math.lcm(*(s.denominator for s in shares))
    scaled = [int(s * whole) for s in shares]
    worst, counts = 0, [0] * len(shares)
    for n, k in enumerate(plan.domain.tolist(), 1):
        counts[k] += 1
        worst = max(worst, *(abs(c * whole - a * n) for c, a in zip(counts, scaled, strict=True)))
    return Fraction(worst, whole)


class TestExactness:
    @settings(deadline=None, max_examples=60)
    @given(WEIGHTS, st.integers(1, 400))
    def test_every_prefix(self, weights: list[float], n: int) -> None:
        plan = plan_of(weights, n)
        assert len(plan) == n
        assert worst_lag(plan, [Fraction(float(w)) for w in mix(weights).weights]) < 1

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(any), st.integers(1, 3))
    def test_exact_shares_come_out_exact_each_period(self, parts: list[int], periods: int) -> None:
        total = sum(parts)
        plan = plan_of([float(part) for part in parts], periods * total)
        shares = [Fraction(part, total) for part in parts]
        assert worst_lag(plan, shares) < 1
        assert list(plan.counts().values()) == [periods * part for part in parts]

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(1, 10**6), min_size=2, max_size=20))
    @example([411, 572, 3346, 999_999])
    def test_shares_with_large_denominators(self, parts: list[int]) -> None:
        total, rounding = sum(parts), Fraction(300, 1 << 47)  # shares are held to 2^-48, over 300 draws
        assert worst_lag(plan_of([float(p) for p in parts], 300), [Fraction(p, total) for p in parts]) < 1 + rounding

    @given(st.lists(st.floats(1e-3, 1), min_size=2, max_size=12))
    def test_whole_numbers_stand_for_shares_that_are_no_fractions(self, weights: list[float]) -> None:
        shares = mix(weights).weights
        scaled, whole = integer_shares(shares)
        assert sum(scaled) == whole
        np.testing.assert_allclose(np.array(scaled) / whole, shares, atol=1e-12)

    def test_the_case_that_greatest_error_gets_wrong(self) -> None:
        weights = [0.5] + [0.5 / 12] * 12
        assert worst_lag(plan_of(weights, 600), [Fraction(1, 2)] + [Fraction(1, 24)] * 12) < 1

    def test_speed(self) -> None:
        start = time.perf_counter()
        plan_of([0.4, 0.3, 0.2, 0.05, 0.05], 100_000, rows=30_000)
        assert time.perf_counter() - start < 2  # 20 µs each; about 1.5 µs on an idle core


class TestEpochs:
    @settings(deadline=None, max_examples=40)
    @given(WEIGHTS, st.integers(1, 7), st.lists(st.integers(1, 60), min_size=1, max_size=3), st.data())
    def test_no_row_twice_in_an_epoch_across_phases(
        self, weights: list[float], rows: int, phases: list[int], data: st.DataObject
    ) -> None:
        plan: MixturePlan | None = None
        for n in phases:
            shuffled = data.draw(st.permutations(weights))
            plan = plan_of(list(shuffled), n, rows=rows, previous=plan)
        assert plan is not None
        assert len(plan) == sum(phases)
        for k in range(len(weights)):
            drawn = plan.row[plan.domain == k]
            for first in range(0, len(drawn), rows):
                epoch = drawn[first : first + rows]
                assert len(set(epoch.tolist())) == len(epoch)
                assert set(epoch.tolist()) <= set(range(rows))

    def test_reshuffled_every_epoch_and_by_seed_and_name(self) -> None:
        rows = {n: plan_mixture(Mixture.uniform(["a"]), 100, {"a": 50}, seed=n).row for n in (0, 1)}
        other = plan_mixture(Mixture.uniform(["b"]), 100, {"b": 50}, seed=0).row
        assert (rows[0][:50] != rows[0][50:]).any()
        assert (rows[0] != rows[1]).any()
        assert (rows[0] != other).any()

    def test_a_domain_keeps_its_order_whatever_is_mixed_with_it(self) -> None:
        alone = plan_mixture(Mixture.uniform(["a"]), 40, {"a": 30}, seed=3)
        mixed = plan_mixture(Mixture.of({"b": 0.5, "a": 0.5}), 80, {"a": 30, "b": 9}, seed=3)
        np.testing.assert_array_equal(alone.row, mixed.row[mixed.domain == 1])

    def test_first_row_is_fair(self) -> None:
        plan = plan_mixture(Mixture.uniform(["a"]), 8000, {"a": 4}, seed=0)
        first = Counter(plan.row[::4].tolist())
        assert all(abs(first[r] - 500) < 100 for r in range(4))  # five standard deviations

    def test_one_row_and_no_share(self) -> None:
        plan = plan_mixture(Mixture.of({"a": 1.0, "b": 0.0}), 5, {"a": 1, "b": 0}, seed=0)
        assert plan.row.tolist() == [0] * 5
        assert plan.repetitions() == {"a": 5.0, "b": 0.0}


class TestLimits:
    def test_message(self) -> None:
        mixture = Mixture.of({"arxiv": 0.31, "web": 0.69})
        with pytest.raises(DataError) as caught:
            plan_mixture(
                mixture,
                1000,
                {"arxiv": 120, "web": 900},
                seed=0,
                max_epochs={"arxiv": 1},
                sequence_length=1000,
            )
        for part in (
            "domain 'arxiv': weight 0.31 asks for 3.1e+05 tokens",
            "has 1.2e+05",
            "max_epochs=1",
            "cap",
        ):
            assert part in str(caught.value)

    def test_a_share_exactly_at_the_limit_is_allowed(self) -> None:
        plan = plan_mixture(
            Mixture.of({"a": 0.3, "b": 0.7}), 1000, {"a": 150, "b": 350}, seed=0, max_epochs={"a": 2, "b": 2}
        )
        assert plan.repetitions() == {"a": 2.0, "b": 2.0}

    def test_counted_over_phases(self) -> None:
        first = plan_of([1.0, 1.0], 60)
        with pytest.raises(DataError, match="'d0'"):
            plan_of([3.0, 1.0], 40, previous=first, max_epochs={"d0": 1.0})
        plan_of([1.0, 3.0], 40, previous=first, max_epochs={"d0": 1.0})

    def test_no_sequence(self) -> None:
        with pytest.raises(DataError, match="domain 'b'"):
            plan_mixture(Mixture.uniform(["a", "b"]), 5, {"a": 3, "b": 0}, seed=0)

    def test_another_seed_or_other_data_cannot_continue(self) -> None:
        first = plan_of([1.0, 1.0], 10)
        with pytest.raises(DataError, match="seed"):
            plan_mixture(mix([1.0, 1.0]), 5, {"d0": 50, "d1": 50}, seed=1, previous=first)
        with pytest.raises(DataError, match="other data"):
            plan_of([1.0, 1.0], 5, rows=51, previous=first)


class TestPlan:
    def test_save_and_load(self, tmp_path: Path) -> None:
        plan = plan_of([0.2, 0.5, 0.3], 100)
        plan.save(tmp_path / "plan.npz")
        again = MixturePlan.load(tmp_path / "plan.npz")
        assert again.fingerprint == plan.fingerprint
        assert (again.names, again.available, again.seed) == (plan.names, plan.available, plan.seed)
        np.testing.assert_array_equal(again.row, plan.row)
        assert [path.name for path in tmp_path.iterdir()] == ["plan.npz"]

    def test_slices(self) -> None:
        plan = plan_of([0.2, 0.5, 0.3], 100)
        part = plan[20:70]
        assert len(part) == 50
        np.testing.assert_array_equal(part.domain, plan.domain[20:70])
        np.testing.assert_array_equal(part.row, plan.row[20:70])

    def test_the_mixture_can_change_where_the_stream_was_cut(self) -> None:
        whole = plan_of([0.5, 0.5], 100, rows=80)
        changed = plan_of([0.1, 0.9], 50, rows=80, previous=whole[:60])
        np.testing.assert_array_equal(changed.domain[:60], whole.domain[:60])
        assert changed.counts() == {"d0": 35, "d1": 75}
        rows = changed.row[changed.domain == 1]
        assert len(set(rows.tolist())) == 75

    def test_fingerprint_is_of_the_order(self) -> None:
        assert plan_of([0.5, 0.5], 50).fingerprint == plan_of([0.5, 0.5], 50).fingerprint
        assert plan_of([0.5, 0.5], 50).fingerprint != plan_of([0.5, 0.5], 51).fingerprint
        assert plan_of([0.5, 0.5], 50).fingerprint != plan_of([0.5, 0.5], 50, rows=49).fingerprint
