"""A life with targets: measured beside the domains, never trained on, known to status, report and verify."""

import pytest
from lives import NAMES, Toys, content, facts, life, stage

from opmix.errors import ConfigError
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.status import run_status
from opmix.lifecycle.steps import chain
from opmix.mixture_search.verify import verify_run
from opmix.settings.loading import validated
from opmix.testing import write_toy_domains


@pytest.fixture(scope="module")
def aimed(tmp_path_factory):
    """A life whose second stage is for text like alpha's, lived."""
    folder = tmp_path_factory.mktemp("aimed")
    write_toy_domains(folder / "data", NAMES, 60)
    lines = (folder / "data" / "alpha.jsonl").read_text().splitlines(keepends=True)
    (folder / "data" / "alpha.jsonl").write_text("".join(lines[:40]))
    (folder / "dev.jsonl").write_text("".join(lines[40:]))
    letters = (folder / "data" / "gamma.jsonl").read_text().splitlines(keepends=True)
    (folder / "data" / "gamma.jsonl").write_text("".join(letters[:40]))
    (folder / "letters.jsonl").write_text("".join(letters[40:]))
    toys = Toys(folder)
    one = stage("one", 8, domains=["alpha", "beta"], prefix=0.5)
    two = stage("two", 4, add=["gamma"], targets={"manual": None, "letters": "letters.jsonl"})
    config = toys.config(one, two, targets={"manual": "dev.jsonl"}, solve={"loss_limits": "none"})
    return toys, config, toys.live(config, folder / "run")


@pytest.mark.slow
def test_targets_are_measured_in_every_stage_and_trained_in_none(aimed):
    _, _, result = aimed
    one, two = result.content["seeds"]["0"]["stages"]
    for stage_told in (one, two):
        assert set(stage_told["targets"]["test"]) == {"manual", "letters"}
        assert set(stage_told["losses"]["test"]) <= set(NAMES)
        assert set(stage_told["mixture"]) <= set(NAMES)
        assert all(part["probes"] > 0 for part in stage_told["parts"] if part["decided"])
    assert one["targets"]["aimed_at"] == ["manual"]
    assert two["targets"]["aimed_at"] == ["letters"]  # the stage's own in the place of the life's
    assert set(two["parts"][0]["predicted"]) == {"alpha", "beta", "gamma", "letters"}
    before = two["targets"]["test"]["manual"]["before"]
    assert before == one["targets"]["test"]["manual"]["after"] < one["targets"]["test"]["manual"]["before"]
    assert result.content["stages"][1]["target_test_loss"]["letters"]["n"] == 1
    rows = (result.folder / "tables" / "targets.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2
    page = (result.folder / "report.html").read_text()
    assert "Targets, never trained on" in page
    assert "letters" in page


@pytest.mark.slow
def test_status_and_a_second_run_know_what_a_changed_target_makes_stale(aimed):
    toys, _, result = aimed
    assert {step.state for step in run_status(result.folder).steps} == {"done"}
    file = toys.folder / "letters.jsonl"
    old = file.read_text()
    file.write_text(old + old)
    found = run_status(result.folder)
    file.write_text(old)
    assert found.changed == ("letters",)
    stale = [step.name for step in found.steps if step.state == "stale" and "data of letters changed" in step.why]
    assert stale == ["seed-0/01-one/before", "seed-0/01-one/after", "seed-0/02-two/search-0", "seed-0/02-two/after"]


@pytest.mark.slow
def test_a_decision_for_targets_is_verified_and_drawn(aimed):
    _, _, result = aimed
    folder = result.folder / "seed-0" / "02-two" / "search-0"
    found = verify_run(folder, points=1)
    assert found.metrics == ("alpha", "beta", "gamma", "letters")
    assert found.points[0].direct.shape == (4,)
    assert "letters" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({"manual": {"valid": "other.jsonl"}}, "other text than the target of that name"),
        ({"exam": None}, "stages.1.targets.exam: null, and the life has none of that name"),
        ({"beta": "dev.jsonl"}, "stages.1.targets.beta: is a domain's name too"),
        ({"manual": {"valid": "dev.jsonl", "weight": 0}}, "stages.1.targets: all weights are 0"),
    ],
)
def test_what_is_wrong_with_a_stages_targets_is_said_at_once(targets, said):
    one, two = stage("one", 8, domains=["alpha", "beta"], prefix=0.5), stage("two", 4, add=["gamma"], targets=targets)
    with pytest.raises(ConfigError, match=said):
        validated(LifecycleConfig, content(one, two, targets={"manual": "dev.jsonl"}))


def test_settings_that_are_left_alone_change_no_key_of_older_runs():
    found = [step for step in chain(life(), facts(), 0) if step.kind == "search"]
    assert found
    for step in found:
        assert "unit" not in step.settings["search"]["solve"]
        assert "targets" not in step.settings["search"]
    bits = [step for step in chain(life(solve={"unit": "bpb"}), facts(), 0) if step.kind == "search"]
    assert [step.settings["search"]["solve"]["unit"] for step in bits] == ["bpb"] * len(found)
