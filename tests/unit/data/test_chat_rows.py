"""Rows of conversations: whole, counted in supervised tokens, cut only where it was said."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix.data import ChatRows, MixtureDataset, PackedSequences, pad_rows, plan_mixture, plan_supervised
from opmix.data.cache import TokenSplit
from opmix.data.chat.rows import best_fit
from opmix.domain import ChatOptions
from opmix.errors import DataError
from opmix.mixing.mixture import Mixture

SIZES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=30)


def split_of(sizes: list[tuple[int, int]]) -> TokenSplit:
    """Conversations of (prompt, answer) tokens; token t of document i is 100 i + t."""
    ids = np.concatenate([100 * i + np.arange(p + a) for i, (p, a) in enumerate(sizes, 1)])
    mask = np.concatenate([np.repeat([0, 1], [p, a]) for p, a in sizes])
    return TokenSplit(
        domain="d",
        split="train",
        fingerprint="f",
        tokens=ids.astype(np.uint16),
        mask=mask.astype(np.uint8),
        offsets=np.cumsum([0, *(p + a for p, a in sizes)]),
        byte_counts=np.array([10 * a for _, a in sizes]),
    )


def rows_of(sizes, length=10, **options):
    return ChatRows(split_of(sizes), length, ChatOptions(**options))


class TestPacking:
    def test_conversations_stay_whole_and_positions_restart(self):
        rows = rows_of([(2, 2), (3, 3), (1, 2)])
        assert [rows[i].tolist() for i in range(len(rows))] == [
            [200, 201, 202, 203, 204, 205, 100, 101, 102, 103],
            [300, 301, 302],
        ]
        assert rows.position_ids(0).tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
        assert rows.labels(0).tolist() == [-100, -100, -100, 203, 204, 205, -100, -100, 102, 103]
        assert rows.supervised.tolist() == [5, 2]
        assert rows.lengths.tolist() == [10, 3]
        assert [rows.num_bytes(i) for i in range(2)] == [50, 20]

    def test_one_to_a_row(self):
        rows = rows_of([(2, 2), (3, 3), (1, 2)], packing=False)
        assert rows.lengths.tolist() == [4, 6, 3]
        assert rows.batch([0, 2]).tolist() == [[100, 101, 102, 103], [300, 301, 302, 0]]

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
    def test_every_item_is_in_one_bin_that_holds_it(self, sizes):
        bins = best_fit(np.array(sizes), 20)
        assert sorted(i for b in bins for i in b) == list(range(len(sizes)))
        assert all(sum(sizes[i] for i in b) <= 20 for b in bins)
        assert len(bins) <= 1.7 * sum(sizes) / 20 + 1

    @settings(deadline=None, max_examples=30)
    @given(SIZES, st.sampled_from(["left", "right", "drop"]), st.booleans())
    def test_counts_are_those_of_the_labels(self, sizes, truncate, packing):
        try:
            rows = rows_of(sizes, truncate=truncate, packing=packing)
        except DataError:
            return
        for i in range(len(rows)):
            labels, ids = rows.labels(i), rows[i]
            assert len(labels) == len(ids) == len(rows.position_ids(i)) == rows.lengths[i] <= 10
            assert (labels != -100).sum() == rows.supervised[i] > 0
            assert (labels[rows.position_ids(i) == 0] == -100).all()
            assert ((labels == ids) | (labels == -100)).all()


class TestOverLong:
    SIZES = [(2, 2), (8, 6), (20, 3)]  # noqa: RUF012

    def test_dropped_unless_a_side_is_said(self):
        rows = rows_of(self.SIZES)
        assert rows.lengths.tolist() == [4]
        assert (rows.report.conversations, rows.report.truncated, rows.report.dropped) == (3, 0, 2)
        assert "d: 2 are left out of 3 conversations, longer than 10 tokens" in (
            rows.report.note("d", 10, "drop") or ""
        )

    def test_cut_on_the_right_and_left_out_if_no_answer_is_left(self):
        rows = rows_of(self.SIZES, truncate="right", packing=False)
        assert rows.lengths.tolist() == [4, 10]
        assert rows.supervised.tolist() == [2, 2]
        assert (rows.report.truncated, rows.report.dropped) == (1, 1)
        assert "1 are cut on the right" in (rows.report.note("d", 10, "right") or "")

    def test_cut_on_the_left_keeps_the_answers(self):
        rows = rows_of(self.SIZES, truncate="left", packing=False)
        assert rows.lengths.tolist() == [4, 10, 10]
        assert rows.supervised.tolist() == [2, 6, 3]
        assert rows[2].tolist() == list(range(313, 323))

    def test_nothing_lost_nothing_to_say(self):
        assert rows_of([(2, 2)]).report.note("d", 10, "drop") is None

    def test_nothing_fits(self):
        with pytest.raises(
            DataError, match=r"none of 1 conversations fits into sequence_length 10; raise it, or set `truncate`"
        ):
            rows_of([(20, 3)])

    def test_text_is_refused(self):
        split = split_of([(2, 2)])
        text = TokenSplit(
            **{k: getattr(split, k) for k in ("domain", "split", "fingerprint", "tokens", "offsets", "byte_counts")}
        )
        with pytest.raises(DataError, match="holds text"):
            ChatRows(text, 4, ChatOptions())


class TestMixing:
    WORTH: ClassVar = {
        "terse": np.random.default_rng(0).integers(1, 4, 200),
        "wordy": np.random.default_rng(1).integers(5, 90, 150),
        "text": np.full(40, 64),
    }

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any), st.integers(300, 20_000), st.integers(0, 5)
    )
    def test_a_sample_is_not_a_token(self, parts, tokens, seed):
        """Each domain's *supervised tokens* are within half a row of its share, at the end and at any moment before."""
        mixture = Mixture.normalised({n: float(p) for n, p in zip(self.WORTH, parts, strict=True)})
        plan = plan_supervised(mixture, tokens, self.WORTH, seed=seed)
        for part in (plan, plan[: max(1, len(plan) // 3)]):
            read = {n: int(w[part.row[part.domain == k]].sum()) for k, (n, w) in enumerate(self.WORTH.items())}
            total = tokens if part is plan else sum(read.values())
            slack = 0.5 if part is plan else 1.5
            assert all(abs(read[n] - mixture[n] * total) <= slack * 90 for n in read)
        rows = plan.row[plan.domain == 0]
        assert len(set(rows[:200].tolist())) == min(len(rows), 200)  # no row twice before an epoch ends

    def test_phases_go_on_where_the_one_before_ended(self):
        mixture = Mixture.of({"terse": 0.5, "wordy": 0.5})
        first = plan_supervised(mixture, 200, self.WORTH, seed=0)
        both = plan_supervised(
            Mixture.of({"terse": 0.5, "wordy": 0.3, "text": 0.2}), 150, self.WORTH, seed=0, previous=first
        )
        assert (both.row[: len(first)] == first.row).all()
        rows = both.row[both.domain == 0]
        assert len(set(rows.tolist())) == len(rows)
        assert both.cursors()["terse"] == len(rows)
        with pytest.raises(DataError, match="another seed"):
            plan_supervised(mixture, 10, self.WORTH, seed=1, previous=first)

    def test_limits_and_least_rows(self):
        worth = {"a": np.array([3, 9, 6]), "b": np.full(100, 10)}
        half = Mixture.of({"a": 0.5, "b": 0.5})
        assert plan_supervised(half, 36, worth, seed=0, max_epochs={"a": 1}).counts()["a"] == 3
        with pytest.raises(DataError, match="raise max_epochs"):
            plan_supervised(half, 200, worth, seed=0, max_epochs={"a": 1})
        assert len(plan_supervised(half, 2, worth, seed=0, min_rows=7)) >= 7
        with pytest.raises(DataError, match="no training row"):
            plan_supervised(half, 10, {**worth, "a": np.zeros(0, dtype=np.int64)}, seed=0)

    def test_text_and_conversations_in_one_stream(self):
        chat = rows_of([(2, 2), (3, 2)], length=8, packing=False)
        text = PackedSequences(
            TokenSplit(
                domain="t",
                split="train",
                fingerprint="f",
                tokens=np.arange(8, dtype=np.uint16),
                offsets=np.array([0, 3, 8]),
                byte_counts=np.array([3, 5]),
            ),
            8,
        )
        plan = plan_mixture(Mixture.of({"c": 0.5, "t": 0.5}), 4, {"c": len(chat), "t": len(text)}, seed=0)
        items = list(MixtureDataset({"c": chat, "t": text}, plan))
        batch = pad_rows(items)
        assert {k: tuple(v.shape) for k, v in batch.items()} == dict.fromkeys(
            ("input_ids", "labels", "position_ids"), (4, 8)
        )
        for item, k in zip(items, plan.domain, strict=True):
            if plan.names[k] == "t":
                assert (item["labels"] == item["input_ids"]).all()
                assert item["position_ids"].tolist() == list(range(8))
        masked = MixtureDataset({"c": chat, "t": text}, plan, document_mask=True)
        assert any((item["position_ids"].diff() < 0).any() for item in masked)
