"""Averaged against jointly trained probes: what is left unexplained, and what is said of it."""

import numpy as np
import pytest

from opmix.mixing.twins import InterferenceCheck, Twin


def check(*pairs, corrected=True, variation=0.5):
    twins = tuple(
        Twin(
            joint=0,
            averaged=1,
            difference=np.asarray(difference, dtype=float),
            standard_error=np.full(len(difference), 0.001),
            explained=np.asarray(explained, dtype=float),
        )
        for difference, explained in pairs
    )
    return InterferenceCheck(twins=twins, corrected=corrected, variation=variation)


def test_what_the_law_explains_is_not_left():
    found = check(([0.03, 0.01], [0.03, 0.01]))
    assert found.left == 0.0
    assert found.structural == 0.0
    assert found.worst == 0.03


def test_what_is_left_is_the_root_mean_square_of_the_mean_difference():
    found = check(([0.05, 0.01], [0.01, 0.01]), ([-0.04, 0.0], [0.0, 0.0]))
    assert found.left == pytest.approx(np.sqrt((0.02**2 + 0.02**2) / 2))
    assert found.structural == pytest.approx(found.left * 0.5)


def test_the_sentence_says_which_is_worse_and_by_what_share():
    assert "0.0200 nats worse" in check(([0.02], [0.0])).verdict(0.04)
    assert "50% of what mixtures differ by" in check(([0.02], [0.0])).verdict(0.04)
    assert "0.0200 nats better" in check(([-0.02], [0.0])).verdict(0.04)
    assert "inf%" in check(([0.02], [0.0])).verdict(0.0)
    assert "corrected to 0.0200" in check(([0.02], [0.0])).verdict(1.0)
    assert "not corrected" in check(([0.02], [0.0]), corrected=False).verdict(1.0)


def test_the_sentence_needs_no_paper():
    said = check(([0.02], [0.0])).verdict(1.0)
    assert not set(said.lower().replace(",", " ").split()) & {
        "probe",
        "probes",
        "proxies",
        "law",
        "twins",
        "simulation",
    }


def test_without_twins_nothing_is_claimed():
    none = InterferenceCheck(twins=(), corrected=False, variation=0.0)
    assert (none.left, none.worst) == (0.0, 0.0)
    assert none.verdict(1.0).startswith("Not checked")
