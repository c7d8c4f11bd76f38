"""Plans of long runs: the same promises as a plan that is an array, at any length and without its memory."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix.data import MixtureDataset, PackedSequences, Plan, TokenSplit, periodic, plan_mixture
from opmix.data.periodic import Cycle, JoinedPlan, PeriodicPlan, permuted, plan_periodic, plan_stretch
from opmix.errors import DataError
from opmix.mixing.mixture import Mixture
from opmix.training.plan import TrainingPlan, plan_training

PARTS = st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches are long from 100 sequences on, and a cycle has 512 at most."""
    monkeypatch.setattr(periodic, "PERIODIC_FROM", 100)
    monkeypatch.setattr(periodic, "LONGEST_CYCLE", 512)


def mixture_of(parts: list[float]) -> Mixture:
    return Mixture.normalised({f"d{k}": float(part) for k, part in enumerate(parts)})


def plan_of(parts: list[float], num: int, *, rows: int = 7, previous: Plan | None = None, seed: int = 0) -> Plan:
    mixture = mixture_of(parts)
    return plan_periodic(mixture, num, dict.fromkeys(mixture.names, rows), seed=seed, previous=previous)


def all_of(plan: Plan) -> tuple[list[int], list[int]]:
    domain, row = plan.at(np.arange(len(plan)))
    return domain.tolist(), row.tolist()


class TestMixture:
    @settings(deadline=None, max_examples=60)
    @given(PARTS, st.integers(0, 10**12), st.integers(1, 700))
    def test_every_prefix_is_within_one_sequence_of_written_shares(
        self, parts: list[int], first: int, more: int
    ) -> None:
        """Anywhere in the stream: counted from its start, in whole numbers."""
        plan, total = plan_of(list(map(float, parts)), first + more), sum(parts)
        domain, _ = plan[first:].at(np.arange(more))
        before = plan[:first].counts()
        for k, part in enumerate(parts):
            counts = before[f"d{k}"] + np.cumsum(domain == k)
            lag = [abs(int(c) * total - (first + n) * part) for n, c in enumerate(counts, 1)]
            assert max(lag) < total

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.floats(1e-3, 1), min_size=2, max_size=9), st.data())
    def test_found_shares_are_rounded_little_and_then_kept(self, weights: list[float], data: st.DataObject) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(periodic, "LONGEST_CYCLE", 512)
            cycle = Cycle.of(mixture_of(weights).weights)
        whole = len(cycle.order)
        assert np.abs(cycle.each / whole - mixture_of(weights).weights).max() < 2 / 512
        counts = np.cumsum(cycle.order[:, None] == np.arange(len(weights)), axis=0)
        steps = np.arange(1, whole + 1)[:, None]
        assert (np.abs(counts * whole - steps * cycle.each) < whole).all()
        assert counts[-1].tolist() == cycle.each.tolist()
        num = data.draw(st.integers(0, 3 * whole))
        assert cycle.drawn(num).tolist() == np.bincount(np.resize(cycle.order, num), minlength=len(weights)).tolist()

    def test_a_simple_mixture_is_exact(self) -> None:
        assert len(Cycle.of(np.array([0.75, 0.25])).order) == 4


class TestSeeking:
    @settings(deadline=None, max_examples=30)
    @given(PARTS, st.integers(1, 30), st.lists(st.integers(0, 30), min_size=2, max_size=2))
    def test_a_stretch_is_what_iterating_gives(self, parts: list[int], num: int, cut: list[int]) -> None:
        plan = plan_of(list(map(float, parts)), num)
        domain, row = all_of(plan)
        assert [tuple(map(int, plan.at(i))) for i in range(num)] == list(zip(domain, row, strict=True))
        start, stop = sorted(cut)
        part = plan[start:stop]
        assert all_of(part) == (domain[start:stop], row[start:stop])
        assert list(part.counts().values()) == [domain[start:stop].count(k) for k in range(len(parts))]
        assert list(part.cursors().values()) == [domain[:stop].count(k) for k in range(len(parts))] or start >= num
        assert all_of(part[1:]) == (domain[start:stop][1:], row[start:stop][1:])

    def test_a_worker_gets_the_same(self) -> None:
        plan = plan_of([3, 1], 200)
        assert all_of(pickle.loads(pickle.dumps(plan))) == all_of(plan)

    def test_outside(self) -> None:
        with pytest.raises(IndexError, match="of 10"):
            plan_of([1, 1], 10).at(10)

    def test_what_is_kept_does_not_grow(self) -> None:
        """As large for 10^12 sequences as for 10^7, and no larger than its longest cycle."""
        sizes = {len(pickle.dumps(plan_of([0.123456789, 0.3, 0.576543211], num, rows=num))) for num in (10**7, 10**12)}
        assert max(sizes) - min(sizes) < 100
        assert max(sizes) < periodic.LONGEST_CYCLE * (2 + 8) + 1000


class TestEpochs:
    @settings(deadline=None, max_examples=40)
    @given(PARTS, st.integers(1, 40), st.lists(st.integers(1, 150), min_size=1, max_size=3), st.data())
    def test_no_row_twice_in_an_epoch_across_phases(
        self, parts: list[int], rows: int, phases: list[int], data: st.DataObject
    ) -> None:
        plan: Plan | None = None
        for num in phases:
            shuffled = data.draw(st.permutations(parts))
            plan = plan_of(list(map(float, shuffled)), num, rows=rows, previous=plan)
        assert plan is not None
        assert len(plan) == sum(phases)
        domain, row = map(np.array, all_of(plan))
        for k in range(len(parts)):
            drawn = row[domain == k]
            for first in range(0, len(drawn), rows):
                epoch = drawn[first : first + rows].tolist()
                assert len(set(epoch)) == len(epoch)
                assert set(epoch) <= set(range(rows))

    @settings(deadline=None, max_examples=60)
    @given(st.integers(1, 3000), st.integers(0, 2**63))
    def test_permutations(self, size: int, key: int) -> None:
        index = np.arange(size)
        found = permuted(index, np.full(size, size), np.full(size, key, dtype=np.uint64))
        assert sorted(found.tolist()) == index.tolist()

    def test_reshuffled_every_epoch_and_by_seed_and_name(self) -> None:
        rows = {seed: all_of(plan_of([1, 0], 100, rows=50, seed=seed))[1] for seed in (0, 1)}
        other = all_of(plan_of([0, 1], 100, rows=50))[1]
        assert rows[0][:50] != rows[0][50:]
        assert rows[0] != rows[1]
        assert rows[0] != other

    def test_first_row_is_fair(self) -> None:
        first = np.bincount(all_of(plan_of([1, 0], 8000, rows=4))[1][::4], minlength=4)
        assert (np.abs(first - 500) < 100).all()  # five standard deviations

    def test_limits(self) -> None:
        with pytest.raises(DataError, match=r"domain 'd0': weight 0.75 asks for 7.5e\+08 sequences"):
            plan_periodic(mixture_of([3, 1]), 10**9, {"d0": 10**6, "d1": 10**9}, seed=0, max_epochs={"d0": 2})
        with pytest.raises(DataError, match="no training sequence"):
            plan_periodic(mixture_of([3, 1]), 10**9, {"d0": 0, "d1": 10**9}, seed=0)


class TestJoining:
    """A stream of several stretches, and of both kinds of plan."""

    def stream(self, *lengths: int) -> Plan:
        plan: Plan | None = None
        for number, num in enumerate(lengths):
            mixture = mixture_of([2, 1] if number % 2 else [1, 3])
            plan = plan_stretch(mixture, num, {"d0": 40, "d1": 30}, seed=5, previous=plan)
        assert plan is not None
        return plan

    @pytest.mark.usefixtures("small")
    def test_a_short_stretch_over_a_vast_domain_makes_no_order_of_all_its_rows(self) -> None:
        plan = plan_stretch(Mixture.of({"a": 0.5, "b": 0.5}), 10, {"a": 10**12, "b": 5}, seed=0)
        assert isinstance(plan, PeriodicPlan)
        domains, rows = plan.at(np.arange(10))
        assert np.bincount(domains).tolist() == [5, 5]
        assert rows[domains == 0].max() > 10**9

    def test_short_stretches_are_arrays_as_ever(self) -> None:
        mixture = mixture_of([1, 3])
        found = plan_stretch(mixture, 99, {"d0": 40, "d1": 30}, seed=5)
        assert found.fingerprint == plan_mixture(mixture, 99, {"d0": 40, "d1": 30}, seed=5).fingerprint

    @pytest.mark.usefixtures("small")
    @pytest.mark.parametrize("lengths", [(120, 150), (60, 150), (150, 60), (30, 20, 200, 10)])
    def test_cursors_go_on(self, lengths: tuple[int, ...]) -> None:
        plan = self.stream(*lengths)
        assert isinstance(plan, JoinedPlan)
        domain, row = all_of(plan)
        for start, stop in ((0, len(plan)), (10, 90), (lengths[0], len(plan)), (lengths[0] - 1, lengths[0] + 1)):
            part = plan[start:stop]
            assert all_of(part) == (domain[start:stop], row[start:stop])
            assert list(part.cursors().values()) == [domain[:stop].count(k) for k in range(2)]
            assert list(part.before or (0, 0)) == [domain[:start].count(k) for k in range(2)]
        for at in (0, 5, lengths[0], len(plan)):
            assert list(plan[at:at].cursors().values()) == [domain[:at].count(k) for k in range(2)]

    @pytest.mark.usefixtures("small")
    def test_a_later_domain_and_another_seed(self) -> None:
        plan = plan_of([1, 1], 150)
        longer = plan_of([1, 1, 2], 200, previous=plan)
        assert longer[:150].counts() == {"d0": 75, "d1": 75, "d2": 0}
        assert longer.counts() == {"d0": 125, "d1": 125, "d2": 100}
        with pytest.raises(DataError, match="another seed"):
            plan_of([1, 1], 150, previous=plan, seed=1)


def text(num: int) -> PackedSequences:
    ids, ends = np.arange(num, dtype=np.uint32), np.array([0, num])
    split = TokenSplit(domain="x", split="train", fingerprint=str(num), tokens=ids, offsets=ends, byte_counts=ends[1:])
    return PackedSequences(split, 4)


@pytest.mark.usefixtures("small")
class TestTraining:
    """The users of a plan do not see which kind it is."""

    def planned(self, steps: int, **more: Any) -> TrainingPlan:
        rows = {"d0": text(400), "d1": text(800)}
        arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
        return plan_training(rows, mixture_of([1, 3]), steps=steps, arguments=arguments, seed=0, **more)

    def test_amounts_and_rows(self) -> None:
        found = self.planned(80)
        assert isinstance(found.plan, PeriodicPlan)
        assert (found.row_tokens, found.supervised_tokens) == (640, 640)
        assert found.shares == {"d0": 0.25, "d1": 0.75}
        data = found.dataset
        assert isinstance(data, MixtureDataset)
        domain, row = all_of(found.plan)
        first = [int(data[i]["input_ids"][0]) for i in range(len(data))]
        assert first == [4 * r for r in row]
        assert set(domain) == {0, 1}

    def test_the_mixture_may_change(self) -> None:
        first = self.planned(80)
        second = self.planned(20, previous=first)
        assert second.row_tokens == 160
        whole = all_of(second.plan)
        assert whole[1][:160] == all_of(first.plan)[1]
