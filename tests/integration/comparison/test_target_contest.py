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


@pytest.mark.parametrize("name", ["doge", "grape", "tikmix", "aioli", "skill_it"])
def test_mixers_that_serve_the_domains_own_held_out_sets_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"methods.{name}: .* cannot be told of targets"):
        contest([name], targets={"dev": "dev.jsonl"})
    assert contest([name]).methods
