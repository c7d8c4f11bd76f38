"""A comparison with targets: all methods are judged on the targets' test split; those that search are told of them."""

import pytest
from contests import contest

from opmix.errors import ConfigError


@pytest.mark.slow
def test_methods_are_judged_by_the_targets_test_split(arena, tmp_path):
    lines = (arena.folder / "data" / "gamma.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "dev.jsonl").write_text("".join(line.replace('"text": "', '"text": "so ') for line in lines))
    config = arena.config(
        {"uniform": {}, "op_mix": {}, "merge_mix": {}, "doremi": {}},
        targets={"dev": str(tmp_path / "dev.jsonl"), "other": {"valid": str(tmp_path / "dev.jsonl"), "weight": 0}},
        solve={"weights": {"alpha": 0.5}},
    )
    result = arena.run(config, tmp_path / "out")
    told = result.content
    assert told["judged_by"] == ["dev", "other"]
    for entrant in told["entrants"].values():
        (life,) = entrant["seeds"].values()
        assert life["mean_loss"] == pytest.approx((life["targets"]["dev"] + 0.5 * life["losses"]["alpha"]) / 1.5)
        assert set(life["losses"]) == {"alpha", "beta", "gamma"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Mean over targets, as they are weighed" in page
    assert "Targets, never trained on; judged by: dev, other" in page
    assert arena.run(config, tmp_path / "out").content == told


@pytest.mark.slow
def test_mixers_that_serve_held_out_sets_serve_the_targets(arena, tmp_path):
    lines = (arena.folder / "data" / "gamma.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "dev.jsonl").write_text("".join(line.replace('"text": "', '"text": "so ') for line in lines))
    config = arena.config(
        {"doge": {}, "grape": {}, "tikmix": {}, "aioli": {}},
        targets={"dev": str(tmp_path / "dev.jsonl"), "other": {"valid": str(tmp_path / "dev.jsonl"), "weight": 0}},
    )
    told = arena.run(config, tmp_path / "out").content
    assert set(told["entrants"]) == {"doge", "grape", "tikmix", "aioli"}
    assert all(len(entrant["seeds"]) == 1 for entrant in told["entrants"].values())
    assert arena.run(config, tmp_path / "out").content == told


def test_what_cannot_serve_targets_is_refused_with_its_reason():
    with pytest.raises(ConfigError, match=r"methods\.skill_it: Skill-It cannot be told of targets: its graph is of"):
        contest(["skill_it"], targets={"dev": "dev.jsonl"})
    for name in ("skill_it", "doge", "grape", "tikmix", "aioli"):
        assert contest([name], **({} if name == "skill_it" else {"targets": {"dev": "dev.jsonl"}})).methods
