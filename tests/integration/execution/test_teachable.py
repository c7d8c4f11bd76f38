"""benchmarks/evidence/teachable.py on its toy: every kind of arm runs, is kept, and comes into the tables."""

import json

import pytest
from scripts import ran

pytestmark = pytest.mark.filterwarnings("default")
ARMS = ["opmix-sft-quarter", "replay-sdft"]


def called(out, *arguments):
    code, said = ran("evidence/teachable.py", *arguments, "--quick", "--device", "cpu", "--out", out)
    assert code == 0, said
    return said


def test_arms_run_once_and_the_tables_tell_of_them(tmp_path):
    first = called(tmp_path, "run", "--arms", *ARMS)
    records = {p.name.removesuffix("-seed0.json"): json.loads(p.read_text()) for p in (tmp_path / "records").iterdir()}
    assert set(ARMS) < set(records)
    assert all(f"{name}, seed 0: " in first for name in records)
    assert called(tmp_path, "run", "--arms", *ARMS).startswith("0 arms to run")
    # Searches are charged, fixed mixtures are kept, and self-distillation wrote something.
    searched, replayed = (records[name]["stages"] for name in ARMS)
    assert all(stage["cost"]["flops"]["probes"] > 0 for stage in searched)
    assert replayed[0]["mixture"] == pytest.approx({"code_mbpp": 0.1, "tool_use": 0.9})
    assert replayed[1]["mixture"]["biomed_pubmedqa"] == pytest.approx(0.9)
    # The second stage of every arm has the same budget, and judges the same sets.
    assert {stage["judged"]["test"].keys() == records["base"]["judged"]["test"].keys() for stage in replayed} == {True}
    told = called(tmp_path, "analyse", "--results", str(tmp_path / "results.json"))
    assert all(f"`{name}`" in told for name in records if name != "shown")
    assert "| repeat | " in told
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    flops = {r["arm"]: sum(s["flops"]["search"] for s in r["stages"]) for r in rows if r["arm"] in ARMS}
    assert flops["opmix-sft-quarter"] > flops["replay-sdft"] == 0
