"""What `validate` calls ready runs: settings drawn from their own types, tried on a two-layer model."""

import dataclasses
import types
from copy import deepcopy
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.config import SearchConfig
from opmix.domain import Domain
from opmix.settings import Bounds, hints_of, settings_class
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

NAMES = ("web", "code")
SEARCH = {
    "model": {"name": "llama"},
    "domains": {name: {"train": {"paths": f"text/{name}.jsonl"}} for name in NAMES},
    "budget": {"tokens": 20_000},
    "sequence_length": 32,
    "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
    "probes": {"steps": 2, "rank": 2},
    "proxies": {"eval_sequences": 4},
    "decision": {"draws": 8},
    "cache_dir": "cache",
}
ELSEWHERE = {"targets", "executor", "num_proc", "cache_dir", "groups", "valid", "test", "sdft"}
"""Other files, processes and objectives; tested on their own."""
MEASURED = {"loss_limits"}
"""Whether they can be met is known once the model's losses are measured."""


def values(hint):
    """A strategy for what an annotation allows, its ends included; None where that is not known."""
    kind = get_origin(hint)
    if kind is Annotated:
        inner, *marks = get_args(hint)
        bounds = next((mark for mark in marks if isinstance(mark, Bounds)), None)
        if inner in (int, float) and bounds is not None:
            return within(inner, bounds)
        return values(inner)
    if kind in (Union, types.UnionType):
        inner = [strategy for each in get_args(hint) if (strategy := values(each)) is not None]
        return st.one_of(inner) if inner else None
    if kind is Literal:
        return st.sampled_from(get_args(hint))
    if kind is dict and get_args(hint)[0] is str:
        inner = values(get_args(hint)[1])
        return None if inner is None else st.dictionaries(st.sampled_from(NAMES), inner, max_size=2)
    return {bool: st.booleans(), type(None): st.none()}.get(hint)


def within(kind, bounds):
    """Numbers inside, near both ends and usual ones; large counts only cost time."""
    low = bounds.gt if bounds.gt is not None else bounds.ge
    usual = [1, 2, 3, 7, 40] if kind is int else [1e-9, 0.1, 0.3, 0.5, 0.9, 1.0, 2.5, 40.0]
    ends = [low] if kind is float else [low, low + 1]
    if kind is float and (high := bounds.lt if bounds.lt is not None else bounds.le) is not None:
        ends += [high, high - 1e-9]
    return st.sampled_from([value for value in [*usual, *ends] if not bounds.unmet(value)])


def paths(kind, prefix=()):
    """Where a file says something, with what it may say."""
    for field in dataclasses.fields(kind):
        if field.metadata.get("internal") or field.name in ELSEWHERE | MEASURED:
            continue
        hint = hints_of(kind)[field.name]
        here = prefix if field.metadata.get("inline") else (*prefix, field.name)
        inside = settings_class(hint)
        if inside is not None and get_origin(hint) is not dict and inside is not Domain:
            yield from paths(inside, here)
        elif (strategy := values(hint)) is not None:
            yield here, strategy


DOMAIN = [(("domains", "web", *path), strategy) for path, strategy in paths(Domain) if path[-1] != "kind"]
PATHS = [*paths(SearchConfig), *DOMAIN]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ready")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    write_toy_domains(folder / "text", list(NAMES), 120)
    return folder


@st.composite
def configurations(draw):
    """A sound file with two values replaced."""
    content, said = deepcopy(SEARCH), {}
    for path, strategy in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=2, unique_by=lambda x: x[0])):
        here = content
        for key in path[:-1]:
            here = here.setdefault(key, {})
        here[path[-1]] = said[".".join(path)] = draw(strategy)
    return content, said


@pytest.mark.slow
def test_what_validate_calls_ready_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    runner, ended = CliRunner(), {"ready": 0, "not ready": 0}
    assert len(PATHS) > 40

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # making a failure smaller would take more runs than finding it
        suppress_health_check=list(HealthCheck),
    )
    @given(configurations())
    def walk(drawn):
        content, said = drawn
        (place / "c.yaml").write_text(yaml.safe_dump(content))
        checked = runner.invoke(app, ["validate", "c.yaml"])
        assert checked.exception is None or isinstance(checked.exception, SystemExit), (said, checked.exception)
        ended["ready" if checked.exit_code == 0 else "not ready"] += 1
        if checked.exit_code == 0:
            found = runner.invoke(app, ["search", "c.yaml", "--out", f"run-{sum(ended.values())}"])
            assert found.exit_code == 0, (said, found.exception)

    walk()
    assert min(ended.values()) > 0
