"""What Python callers hand over is of the right kind, or named in one error of ours before anything is done."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import opmix
from opmix import AskTell, ConfigError, DataError, Domain, LawError, Mixture, ModelError, Source, StoreError
from opmix.cli.app import app
from opmix.domain import user_path
from opmix.lifecycle.evaluation import find_model
from opmix.probes.preserve_state import plain_model
from opmix.runs.files import write_text
from opmix.runs.remote import RemoteFolder
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

ROWS = [f"r{i},{i / 10},{1 - i / 10},{3 - (i / 10 - 0.4) ** 2}" for i in range(11)]
NO_PATHS = {"none": None, "number": 3, "list": ["a"], "null": "a\0b", "long": "x" * 300, "no user": "~nosuchuser/x"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("\n".join(["run,ratio_a,ratio_b,loss_x", *ROWS]))
    return tmp_path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    table = tmp_path_factory.mktemp("fit") / "t.csv"
    table.write_text("\n".join(["run,ratio_a,ratio_b,loss_x", *ROWS]))
    return opmix.fit_runs(str(table), decision={"draws": 20})


@pytest.mark.parametrize("path", NO_PATHS.values(), ids=NO_PATHS)
def test_what_is_no_path_is_told(here, fitted, path):
    taken = [
        lambda: opmix.run(path, out="r"),
        lambda: opmix.run({}, out=path),
        lambda: opmix.compare(path, out="r"),
        lambda: opmix.fit_runs(path),
        lambda: AskTell(["a", "b"], budget=1000, out=path),
        lambda: AskTell.open(path),
        lambda: fitted.write(path),
    ]
    for call in taken:
        with pytest.raises(opmix.OpMixError):
            call()
    assert [p.name for p in here.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("of", ["AskTell", "open"])
def test_a_url_is_no_folder_named_like_one(here, of):
    with pytest.raises(ConfigError, match=r"s3://bucket/run; expected a folder of this machine"):
        AskTell(["a", "b"], budget=1, out="s3://bucket/run") if of == "AskTell" else AskTell.open("s3://bucket/run")
    assert not (here / "s3:").exists()


def test_a_store_without_a_place_is_told():
    with pytest.raises(ConfigError, match="names no place in the store"):
        RemoteFolder("memory://")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"domains": "web"}, "domains: .*valid list"),
        ({"domains": None}, "domains: .*valid list"),
        ({"domains": {"a", "b"}}, "domains: .*valid list"),
        ({"domains": [["a"], "b"]}, "domains.0: .*valid string"),
        ({"old_mixture": [0.5, 0.5]}, "old_mixture: .*dictionary"),
        ({"old_mixture": "uniform"}, "old_mixture: .*dictionary"),
        ({"targets": "abc"}, "targets: .*valid list"),
        ({"available": [1]}, "available: .*dictionary"),
        ({"available": {"a": "lots"}}, "available.a: .*'lots'"),
        ({"available": {"a": float("nan")}}, "available.a"),
        ({"available": {"a": 10**400}}, "available.a"),
        ({"mixtures": 2.5}, "mixtures: .*2.5"),
        ({"mixtures": True}, "mixtures: "),
        ({"solve": [1]}, "solve: .*dictionary"),
        ({"decision": 3}, "decision: .*dictionary"),
        ({"seed": None}, "seed: "),
    ],
)
def test_what_an_ask_tell_is_given(here, given, said):
    with pytest.raises(ConfigError, match=said):
        AskTell(**{"domains": ["a", "b"], "budget": 1000, "out": "r", **given})
    assert not (here / "r").exists()


@pytest.mark.parametrize(
    "losses",
    [
        None,
        [1],
        "x",
        {1: {"a": 1.0}},
        {"probe a": 3},
        {"probe a": [1, 2]},
        {"probe a": {"a": 10**400, "b": 1}},
        {"probe a": {"a": True, "b": 1}},
        {"probe a": {1: 1.0}},
    ],
    ids=str,
)
def test_what_an_ask_tell_is_told(here, losses):
    search = AskTell(["a", "b"], budget=1000, out="r")
    with pytest.raises(DataError):
        search.tell(losses)
    assert not any(run.told for run in search.runs)


def test_where_every_run_failed_there_is_no_law(here):
    search = AskTell(["a", "b"], budget=1000, out="r")
    search.tell({run.name: None for run in search.ask()})
    with pytest.raises(LawError, match="no points"):
        search.result()


def test_a_damaged_record_of_an_ask_tell_is_told(here):
    AskTell(["a", "b"], budget=1000, out="r")
    place = here / "r" / "asked.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "settings": {"domains": "ab"}}))
    with pytest.raises(StoreError, match=r"(?s)asked.json: damaged: .*domains"):
        AskTell.open("r")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kl": "x"}, "kl: "),
        ({"kl": float("nan")}, "kl: "),
        ({"objective": "best"}, "objective: "),
        ({"huber_delta": 0}, "huber_delta: "),
        ({"weights": [1]}, "weights: "),
        ({"loss_limits": {"x": "y"}}, "loss_limits.x: "),
        ({"constraints": {"floors": {}}}, r"constraints: a dict; expected .*Constraints\("),
        ({"directions": "x"}, r"directions: a str; expected .*Directions\("),
        ({"decision": {"drwas": 3}}, "did you mean 'draws'"),
        ({"prior": {"a": 1.0}}, "cannot be a path"),
        ({"source": "wandb", "ratio_prefix": 3}, "ratio_prefix: "),
    ],
)
def test_what_a_fit_is_given(here, given, said):
    with pytest.raises(ConfigError, match=said):
        opmix.fit_runs("t.csv", **given)


def test_a_result_is_written_where_no_run_of_another_verb_is(here, fitted):
    fitted.write("r")
    (here / "r" / "manifest.json").write_text('{"command": "search"}')
    before = (here / "r" / "mixture.json").read_bytes()
    with pytest.raises(StoreError, match="holds a run of `opmix search`"):
        fitted.write("r")
    assert (here / "r" / "mixture.json").read_bytes() == before


@pytest.mark.parametrize("weights", ["xy", ["x", "y"], [None, 1.0], [0.5j, 0.5], [[1], [1, 2]]], ids=str)
def test_weights_that_are_no_numbers(weights):
    with pytest.raises(ConfigError, match="Mixture: "):
        Mixture(("a", "b"), weights)


@pytest.mark.parametrize("shares", [[1], None, {"a": "x"}, {"a": 10**400}, {1: 1.0}], ids=str)
@pytest.mark.parametrize("made", [Mixture.of, Mixture.normalised])
def test_shares_that_are_no_mapping_of_numbers(made, shares):
    with pytest.raises(ConfigError, match="Mixture: "):
        made(shares)


@pytest.mark.parametrize(("domains", "tokenizer"), [([1], None), ({"a": "t.csv"}, "gpt2"), ({"a": "t.csv"}, None)])
def test_a_stream_of_no_mapping_or_without_a_tokenizer(here, domains, tokenizer):
    said = "tokenizer: a " if isinstance(domains, dict) else "domains: a list"
    with pytest.raises(ConfigError, match=said):
        opmix.MixtureStream.open(domains, tokenizer, {"a": 1.0}, cache_dir="c", num_sequences=1, sequence_length=8)


@pytest.mark.parametrize("domains", ["text", ["a.jsonl"], np.zeros(2)], ids=["a text", "a list", "an array"])
def test_a_search_of_no_mapping(domains):
    with pytest.raises(ConfigError, match=r"domains: a .*; expected names with their data"):
        opmix.search("nowhere", domains=domains, budget=1000)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    files = write_toy_domains(folder, ["web", "code"], 60)

    def opened(**changes):
        given = {"cache_dir": folder / "cache", "num_sequences": 8, "sequence_length": 16, **changes}
        domains = {
            name: Domain(name=name, train=Source(paths=(str(path),)), holdout=0.2) for name, path in files.items()
        }
        return opmix.MixtureStream.open(domains, tiny_tokenizer(), {"web": 0.5, "code": 0.5}, **given)

    return opened


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_sequences": 0}, "num_sequences: "),
        ({"num_sequences": 2.5}, "num_sequences: "),
        ({"sequence_length": "long"}, "sequence_length: "),
        ({"seed": None}, "seed: "),
        ({"max_epochs": [1]}, "max_epochs: "),
        ({"max_epochs": {"web": -1}}, "max_epochs.web: "),
        ({"max_epochs": {"wbe": 1}}, "max_epochs.wbe: unknown domain; did you mean 'web'"),
    ],
)
def test_what_a_stream_is_given(stream, given, said):
    with pytest.raises(ConfigError, match=said):
        stream(**given)


@pytest.mark.parametrize("index", ["2", 2.5, -1, 99])
def test_a_stream_changes_at_one_of_its_sequences(stream, index):
    with pytest.raises(DataError, match="expected one of 0 to 8"):
        stream().switch(index, {"web": 1.0})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"at": "100"}, "at: "),
        ({"at": 100}, "at: "),
        ({"at": [float("nan")]}, "at.0: "),
        ({"at": [0]}, "at.0: "),
        ({"every": 0.5}, "every: "),
        ({"every": 100, "at": [100]}, "either at="),
        ({"every": 100, "out": None}, "cannot be a path"),
        ({"every": 100, "out": "s3://bucket/run"}, "expected a folder of this machine"),
    ],
)
def test_what_a_remix_is_given(stream, given, said):
    with pytest.raises(ConfigError, match=said):
        opmix.RemixCallback(stream(), **{"out": "r", **given})


def test_a_remix_takes_counts_as_people_write_them(stream, here):
    remix = opmix.RemixCallback(stream(), at=np.array([300, 200]), out="r")
    assert remix.at == (200, 300)
    assert opmix.RemixCallback(stream(), every="2k", out="r").every == 2000


@pytest.mark.parametrize(
    ("given", "said"), [({"make_trainer": "x"}, "make_trainer: a str"), ({"progress": True}, "progress: True")]
)
def test_what_a_search_calls(here, given, said):
    for call in (opmix.search, opmix.run, opmix.compare):
        content = {
            "model": "nowhere",
            "domains": {"web": "a", "code": "b"},
            "old_mixture": {"web": 0.5, "code": 0.5},
            "stages": [{"name": "a", "tokens": 1000}],
        }
        more = {"methods": {"uniform": {}}} if call is opmix.compare else {}
        first = ("nowhere", None, {"web": "a", "code": "b"}) if call is opmix.search else ({**content, **more},)
        with pytest.raises(ConfigError, match=said):
            call(*first, **({"budget": 1000} if call is opmix.search else {"out": "r"}), **given)


def test_a_model_without_a_head_is_told(here):
    model = tiny_model("llama", vocab_size=300).model
    with pytest.raises(ModelError, match="LlamaModel, which has no head"):
        plain_model(model)


def test_nothing_but_a_file_is_replaced(here):
    """A rename onto /dev/null would put a file in its place, for every program on the machine: a link and a pipe stand for it."""
    (here / "folder").mkdir()
    (here / "device").symlink_to("/dev/null")
    os.mkfifo(here / "pipe")
    for place in (Path("/dev/opmix-was-here"), here / "device", here / "pipe", here / "folder"):
        with pytest.raises(StoreError, match="is no file"):
            write_text(place, "x")
    assert (here / "device").is_symlink()
    assert (here / "pipe").is_fifo()
    assert not Path("/dev/opmix-was-here").exists()
    assert write_text(here / "t.csv", "new").read_text() == "new"


def test_links_in_a_circle_are_no_path(here):
    (here / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="cannot be a path here"):
        user_path("loop")


@pytest.mark.parametrize("place", ["t.csv", "nowhere", "model.safetensors"])
def test_a_card_goes_into_a_folder_or_a_readme_alone(here, fitted, place):
    fitted.write("r")
    before = (here / "t.csv").read_bytes()
    ended = CliRunner().invoke(app, ["card", "r", "--into", place])
    assert "no .md file" in str(ended.exception)
    assert (here / "t.csv").read_bytes() == before
    assert not (here / "nowhere").exists()


def test_folders_that_look_like_lives_are_none(here):
    (here / "seed-x" / "01-a").mkdir(parents=True)
    assert find_model(str(here)) == str(here)
    with pytest.raises(ConfigError, match="cannot be a path here"):
        find_model("x" * 300)


@pytest.mark.parametrize("verb", ["demo", "discover"])
def test_seeds_have_an_end(here, verb):
    ended = CliRunner().invoke(app, [verb, *(["t.csv"] if verb == "discover" else []), "--seed", str(2**40)])
    assert ended.exit_code == 2


def test_a_demo_begins_in_no_run_of_another_verb(here, fitted):
    from opmix.demo import run_demo

    fitted.write("r")
    with pytest.raises(StoreError, match="holds a run of `opmix fit`"):
        run_demo(here / "r")
    assert not (here / "r" / "data").exists()
