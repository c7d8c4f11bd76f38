import numpy as np
import pytest
from fake_bench import FakeBench, exponential, own_share, stage_of

from opmix.errors import ConfigError
from opmix.methods.fixed import Replay, Sequential, Size, Temperature, Uniform


def propose(method, **stage):
    return method.propose(FakeBench(stage_of(**stage), exponential(own_share(4)))).mixture


SIZES = (8_000_000, 4_000_000, 2_000_000, 2_000_000)
OLD = {"web": 0.75, "code": 0.25}


def test_size_and_temperature():
    assert propose(Size(), sizes=SIZES).weights == pytest.approx([0.5, 0.25, 0.125, 0.125])
    root = np.sqrt([8, 4, 2, 2])
    assert propose(Temperature(temperature=2), sizes=SIZES).weights == pytest.approx(root / root.sum())
    assert propose(Temperature(temperature=1), sizes=SIZES) == propose(Size(), sizes=SIZES)
    nearly = propose(Temperature(temperature=1e9), sizes=SIZES)
    assert nearly.weights == pytest.approx(propose(Uniform(), sizes=SIZES).weights)


def test_replay_keeps_old_proportions_and_splits_the_rest():
    assert dict(propose(Replay(), old=OLD)) == pytest.approx({"web": 0.075, "code": 0.025, "math": 0.45, "news": 0.45})
    assert dict(propose(Replay(share=1.0), old=OLD)) == pytest.approx({**OLD, "math": 0, "news": 0})


def test_sequential_is_the_new_domains_alone():
    assert dict(propose(Sequential(), old=OLD)) == pytest.approx({"web": 0, "code": 0, "math": 0.5, "news": 0.5})


@pytest.mark.parametrize("method", [Replay(), Sequential()])
def test_without_new_domains_the_current_mixture_stays(method):
    full = {"web": 0.4, "code": 0.3, "math": 0.2, "news": 0.1}
    assert dict(propose(method, old=full)) == pytest.approx(full)
    assert propose(method).weights == pytest.approx([0.25] * 4)  # nothing known of before


def test_domains_that_the_stage_names_count_as_new_though_they_are_old():
    mixture = propose(Replay(share=0.5), old=OLD, new=["code", "math"])
    assert dict(mixture) == pytest.approx({"web": 0.375, "code": 0.125 + 0.25, "math": 0.25, "news": 0})


def test_settings_out_of_range_are_told():
    with pytest.raises(ConfigError, match=r"share: 1.2; expected a number in \[0, 1\]"):
        Replay(share=1.2)
    with pytest.raises(ConfigError, match="temperature: 0; expected"):
        Temperature(temperature=0)
