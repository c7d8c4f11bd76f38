"""The contract of every method in the catalogue, on a small real comparison: nobody has to remember to test a new one."""

from __future__ import annotations

import json
import shutil

import pytest
from contests import NAMES

from opmix.methods.registry import ENTRIES, METHODS
from opmix.runs.store import RunStore

SETTINGS = {
    "op_mix": {"stage": {"probes": {"steps": 2}}},
    "regmix": {"runs": 12, "trees": 30, "simulated": 500, "top_k": 16},
    "data_mixing_laws": {"runs": 8},
    "climb": {"runs": [6, 3, 2], "trees": 30},
}
"""What makes a method small enough for a test; most need nothing."""

CHAT_ONLY = {name for name, entry in METHODS.items() if entry.stage.get("objective") == "sdft"}
"""Their contract is in test_instruction_contest.py."""

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """As sudden as SIGKILL to everything that catches exceptions."""


def killed_after(monkeypatch, records):
    """The process dies when so many step records have been written."""
    done, real = [], RunStore.step

    def step(self, name, inputs, work, **rest):
        result = real(self, name, inputs, work, **rest)
        if not result[1]:
            done.append(name)
            if len(done) == records:
                raise Killed
        return result

    monkeypatch.setattr(RunStore, "step", step)
    return done


@pytest.fixture(scope="module")
def based(arena, tmp_path_factory):
    """A comparison whose shared stage is done: what every method goes on from, trained once."""
    folder = tmp_path_factory.mktemp("based") / "compare"
    arena.run(arena.config(["uniform"]), folder)
    for own in ("seed-0/uniform", "steps/seed-0/uniform"):
        shutil.rmtree(folder / own)
    return folder


@pytest.mark.parametrize("name", [e.name for e in ENTRIES if e.name not in CHAT_ONLY])
def test_contract(arena, based, tmp_path, monkeypatch, name):
    config = arena.config({name: SETTINGS.get(name, {})})
    whole = arena.run(config, shutil.copytree(based, tmp_path / "whole")).content
    life = whole["entrants"][name]["seeds"]["0"]

    # a mixture on the simplex over the stage's domains
    shares = life["stages"][0]["mixture"]
    assert set(shares) <= set(NAMES)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    assert min(shares.values()) >= 0

    # everything it did is in the ledger
    assert life["cost"]["flops"]["shared"] > 0
    assert life["cost"]["flops"]["training"] > 0 or METHODS[name].name == "lora_merge"
    assert (life["cost"]["flops"]["search"] > 0) == (life["cost"]["tokens"]["search"] > 0)
    if METHODS[name].family == "searched":
        assert life["cost"]["flops"]["search"] > 0

    # killed twice, in its search or wherever else it then was, and finished: the same bytes, so the same seed gives the same bytes too
    out = shutil.copytree(based, tmp_path / "broken")
    for records in (2, 3):
        with monkeypatch.context() as patch:
            killed_after(patch, records)
            try:
                arena.run(config, out)
            except Killed:
                continue
    arena.run(config, out)
    first, second = ((tmp_path / f / "compare.json").read_bytes() for f in ("whole", "broken"))
    assert first == second
    weights = f"seed-0/{name}/02-more/model/model.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (out / weights).read_bytes()
    json.loads(first)
