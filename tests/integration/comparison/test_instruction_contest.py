"""Methods on conversations: distillation beside mixing, learners on answers, mixers that decide during SFT."""

import contests
import pytest

from opmix.comparison.run import run_compare
from opmix.comparison.status import compare_status
from opmix.testing import write_toy_chats, write_toy_domains

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skills")
    write_toy_domains(folder, ["web"], 80)
    write_toy_chats(folder, {"terse": 1}, 60)
    return folder


def test_distillation_learners_and_mixers_on_conversations(folder):
    out = folder / "compare"
    teacher = {"stage": {"sdft": {"teacher_model": str(out / "seed-0" / "01-text" / "model")}}}
    first = contests.on_chats(folder, {"sequential": {}, "sdft": {}, "ewc": {}, "odm": {}, "op_mix": {}})
    run_compare(first, out=out, base=folder)
    full = contests.on_chats(folder, {**{n: {} for n in first.methods}, "on_policy_distillation": teacher})
    content = run_compare(full, out=out, base=folder).content
    lives = {name: entrant["seeds"]["0"] for name, entrant in content["entrants"].items()}
    for name in ("sequential", "sdft", "ewc", "on_policy_distillation"):
        assert lives[name]["stages"][0]["mixture"] == {"web": 0.0, "terse": 1.0}, name
    assert 0 < lives["odm"]["stages"][0]["mixture"]["terse"] < 1
    # Sampling and a teacher's pass are charged: distillation costs more than learning the same answers.
    training = {name: life["cost"]["flops"]["training"] for name, life in lives.items()}
    assert training["sdft"] > training["sequential"]
    assert training["on_policy_distillation"] > training["sequential"]
    assert lives["ewc"]["cost"]["flops"]["search"] > 0  # its Fisher information
    losses = {name: life["losses"]["terse"] for name, life in lives.items()}
    assert len(set(losses.values())) == len(lives)  # no two of them are the same training
    assert {s.state for s in compare_status(out).steps} == {"done"}
    assert run_compare(full, out=out, base=folder).content == content
