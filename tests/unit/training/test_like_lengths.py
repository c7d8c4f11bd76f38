from itertools import combinations, pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from opmix.training.like_lengths import answered_by_length, groups_of_like_length, pad_left

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=7)


def read(groups, lengths, extra):
    return sum(len(g) * max(lengths[i] for i in g) + extra for g in groups)


@given(LENGTHS, st.integers(0, 80))
def test_groups_hold_every_row_once_and_nothing_reads_less(lengths, extra):
    groups = groups_of_like_length(lengths, extra=extra)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for count in range(len(lengths)):
        for cuts in combinations(range(1, len(lengths)), count):
            ends = (0, *cuts, len(lengths))
            other = [longest_first[a:b] for a, b in pairwise(ends)]
            assert read(groups, lengths, extra) <= read(other, lengths, extra)


def test_rows_of_one_length_stay_together_and_in_order():
    assert groups_of_like_length([9, 9, 9], extra=1) == [[0, 1, 2]]
    assert groups_of_like_length([9], extra=0) == [[0]]


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 9)), min_size=1, max_size=6))
def test_a_group_loses_nothing_but_padding(sizes):
    """Rows hold their own numbers, so that what was cut off or mixed up would show."""
    prompts = [torch.full((n,), row + 1) for row, (n, _) in enumerate(sizes)]
    contexts = [torch.full((n + 3,), row + 1) for row, (n, _) in enumerate(sizes)]
    batch = {}
    for name, rows in {"prompt": prompts, "context": contexts}.items():
        batch[f"{name}_ids"], batch[f"{name}_mask"] = pad_left(rows)
    longest = max(answer for _, answer in sizes)
    mask = torch.tensor([[1] * answer + [0] * (longest - answer) for _, answer in sizes])
    batch |= {"answer_ids": mask * torch.arange(1, len(sizes) + 1)[:, None], "answer_mask": mask}
    seen = {}
    for part in answered_by_length(batch, whole=False):
        for name in ("prompt", "context", "answer"):
            ids, shown = part[f"{name}_ids"], part[f"{name}_mask"].bool()
            assert shown.any(0).all()  # no column is padding in every row
            for row in range(len(ids)):
                seen.setdefault(name, []).append((int(ids[row][shown[row]][0]), int(shown[row].sum())))
    rows = range(1, len(sizes) + 1)
    assert sorted(seen["prompt"]) == [(row, n) for row, (n, _) in zip(rows, sizes, strict=True)]
    assert sorted(seen["context"]) == [(row, n + 3) for row, (n, _) in zip(rows, sizes, strict=True)]
    assert sorted(seen["answer"]) == [(row, a) for row, (_, a) in zip(rows, sizes, strict=True)]
    (whole,) = answered_by_length(batch, whole=True)
    assert whole.keys() == batch.keys()
    assert all(torch.equal(whole[k], batch[k]) for k in batch)
