"""Comparisons that are run: what is shared, what is charged, what is resumed."""

import json
from pathlib import Path

import contests
import numpy as np
import pytest
import yaml
from contests import done
from life_sample import loss, stage
from safetensors.torch import load_file

import opmix
from opmix.comparison.results import forgetting
from opmix.comparison.status import compare_status
from opmix.errors import ConfigError, StoreError
from opmix.lifecycle.life import run_life
from opmix.lifecycle.loading import LifecycleConfig
from opmix.preflight.validate import validate
from opmix.results.files import typed
from opmix.results.life import StageEntry
from opmix.settings import as_json
from opmix.settings.loading import validated


def test_the_base_is_trained_once_a_seed(finished):
    steps = done(finished[1].folder)
    assert len(steps) == len(set(steps))
    assert sum("/01-base/train" in s for s in steps) == 2
    assert sum(s.endswith("/02-more/model") for s in steps) == 8


def test_every_cost_is_charged_to_the_one_who_made_it(finished):
    table = {row["entrant"]: row for row in finished[1].content["table"]}
    life = finished[1].content["entrants"]["op_mix"]["seeds"]["0"]
    assert table["op_mix"]["search_flops"]["mean"] > 0
    assert table["uniform"]["search_flops"]["mean"] == 0
    assert table["lora_merge"]["training_flops"]["mean"] == 0
    assert table["lora_merge"]["search_flops"]["mean"] == table["op_mix"]["search_flops"]["mean"]
    assert table["op_mix"]["training_flops"]["mean"] == table["uniform"]["training_flops"]["mean"]
    assert table["full_retraining"]["tokens"]["mean"] == 2.5 * table["uniform"]["tokens"]["mean"]
    assert table["op_mix"]["total_flops"]["mean"] == pytest.approx(
        np.mean([sum(s["cost"]["flops"].values()) for s in finished[1].content["entrants"]["op_mix"]["seeds"].values()])
    )
    assert life["cost"]["flops"]["shared"] > 0
    spent = json.loads((finished[1].folder / "spent.json").read_text())
    assert spent["op_mix"]["0"]["bytes_written"] > spent["uniform"]["0"]["bytes_written"]
    assert spent["op_mix"]["1"]["seconds"]["search"] > 0


def test_differences_are_paired_by_seed(finished):
    content = finished[1].content
    ours, theirs = (content["entrants"][n]["seeds"] for n in ("op_mix", "uniform"))
    apart = [theirs[s]["mean_loss"] - ours[s]["mean_loss"] for s in ("0", "1")]
    row = next(r for r in content["table"] if r["entrant"] == "uniform")
    assert row["difference"]["mean"] == pytest.approx(np.mean(apart))
    assert row["difference"]["sd"] == pytest.approx(np.std(apart, ddof=1))
    assert "difference" not in next(r for r in content["table"] if r["entrant"] == "op_mix")


def test_an_entrant_with_a_fixed_mixture_is_the_life_with_that_mixture(arena, finished, tmp_path):
    config, result = finished
    content = as_json(config.life)
    content["stages"][1]["mixture"] = "uniform"
    content["seeds"] = [0]
    life = run_life(validated(LifecycleConfig, content), out=tmp_path / "life", base=arena.folder)
    one = load_file(life.folder / "seed-0/02-more/model/model.safetensors")
    other = load_file(result.folder / "seed-0/uniform/02-more/model/model.safetensors")
    assert all((one[n] == other[n]).all() for n in one)


def test_full_retraining_forgets_the_base_and_merging_trains_nothing(finished):
    folder = finished[1].folder
    base = load_file(folder / "seed-0/01-base/model/model.safetensors")
    merged = load_file(folder / "seed-0/lora_merge/02-more/model/model.safetensors")
    changed = {n for n in base if not (base[n] == merged[n]).all()}
    assert changed
    assert all("proj" in n for n in changed)  # what adapters sit on, and nothing else
    for name in changed:
        rank = np.linalg.matrix_rank((merged[name] - base[name]).numpy(), tol=1e-6)
        assert rank <= 2 * 3  # three probes of rank 2


def test_running_again_does_nothing_and_adding_a_method_does_only_that(arena, finished, tmp_path):
    out = tmp_path / "compare"
    small = arena.config(["uniform"])
    first = arena.run(small, out)
    before = done(out)
    assert arena.run(small, out).content == first.content
    assert done(out) == before
    arena.run(arena.config(["uniform", "op_mix"]), out)
    assert {s.split("/")[1] for s in done(out)[len(before) :]} == {"op_mix"}


def test_only_some_entrants(arena, tmp_path):
    config = arena.config(["uniform", "op_mix"])
    result = arena.run(config, tmp_path / "c", only=["uniform"])
    assert list(result.content["entrants"]) == ["uniform"]
    with pytest.raises(ConfigError, match="--only unifrm: no such entrant; did you mean 'uniform'"):
        arena.run(config, tmp_path / "c", only=["unifrm"])


def test_changed_inputs_are_refused_before_anything_is_lost(arena, tmp_path):
    out = tmp_path / "c"
    arena.run(arena.config(["uniform"]), out)
    with pytest.raises(StoreError, match="finished steps were done with other inputs"):
        arena.run(arena.config(["uniform"], steps=5), out)
    assert (out / "seed-0/uniform/02-more/model/model.safetensors").exists()
    assert (
        arena.run(arena.config(["uniform"], steps=5), out, redo=True).content["table"][0]["tokens"]["mean"] == 5 * 128
    )


def test_forgetting_is_the_rise_since_a_domain_was_first_learned():
    def made(**losses):
        entries = {d: loss(None, after) for d, after in losses.items()}
        raw = {**stage("s", 0, {}, entries, {}, False), "old_mixture": None}
        return typed(StageEntry, raw, Path("life.json"), nulls=True)

    found = forgetting([made(a=2.0), made(a=2.5, b=3.0), made(a=2.25, b=3.5, c=1.0)])
    assert found == {"a": 0.25, "b": 0.5}


def test_the_report_has_every_entrant_and_section(finished):
    page = (finished[1].folder / "report.html").read_text()
    for section in ("summary", "domains", "forgetting", "mixtures", "cost", "configuration"):
        assert f'id="{section}"' in page
    for name in finished[0].methods:
        assert page.count(f">{name}<") >= 5
    tables = (finished[1].folder / "tables" / "compare.csv").read_text().splitlines()
    assert len(tables) == 5


def test_status_knows_every_step_and_what_would_be_stale(arena, finished, tmp_path):
    config, result = finished
    found = compare_status(result.folder)
    assert {s.state for s in found.steps} == {"done"}
    names = [s.name for s in found.steps]
    assert len(names) == len(set(names))
    assert set(done(result.folder)) <= set(names)
    longer = arena.config({n: {} for n in config.methods}, seeds=[0, 1], probes={"steps": 3, "rank": 2})
    stale = {s.name.split("/")[1] for s in compare_status(result.folder, longer).steps if s.state == "stale"}
    assert stale == {"op_mix", "lora_merge"}
    more = arena.config([*config.methods, "doremi"], seeds=[0, 1])
    left = {s.name.split("/")[1] for s in compare_status(result.folder, more).steps if s.state == "left"}
    assert left == {"doremi"}


def test_a_comparison_is_validated(arena, finished):
    file = arena.folder / "compare.yaml"
    file.write_text(yaml.safe_dump(contests.content(["op_mix", "uniform"])))
    found = validate(file)
    assert "2 stages, 2 methods" in json.dumps([check.json() for check in found.checks])
    file.write_text(yaml.safe_dump(contests.content(["op_mix", "unifrm"])))
    assert not validate(file).valid


def test_a_result_shows_itself_and_is_the_functions_too(arena, finished):
    config, result = finished
    shown = result._repr_html_()
    assert all(f">{name}<" in shown for name in config.methods)
    assert set(result.losses("op_mix")) == {0, 1}
    file = arena.folder / "whole.yaml"
    file.write_text(yaml.safe_dump(as_json(config)))
    again = opmix.compare(file, out=result.folder, only=["uniform"])
    assert again.losses("uniform") == result.losses("uniform")
