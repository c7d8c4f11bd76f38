"""Whatever a file holds, a verb ends in a result or in an error of ours."""

import dataclasses
import json
import shutil
from copy import deepcopy

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.config import SearchConfig, parse_config
from opmix.domain import located
from opmix.errors import ConfigError, OpMixError
from opmix.lifecycle.config import StageConfig
from opmix.lifecycle.loading import LifecycleConfig
from opmix.settings.loading import validated
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

runner = CliRunner()

SEARCH = {"model": "nowhere", "domains": {"web": "a.jsonl", "code": "b.jsonl"}, "budget": 1000}
LIFE = {
    "architecture": {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "tokenizer": {"vocab_size": 300},
    "domains": {"web": "a.jsonl", "code": "b.jsonl"},
    "stages": [{"name": "one", "tokens": 1000, "mixture": "uniform"}],
}


def paths_of(kind, depth=3):
    """Dotted paths of a settings class, those of the classes inside it among them."""
    found = []
    for field in dataclasses.fields(kind):
        found.append((field.name,))
        inside = field.default if field.default is not dataclasses.MISSING else None
        if inside is None and field.default_factory is not dataclasses.MISSING:
            inside = field.default_factory()
        if dataclasses.is_dataclass(inside) and depth:
            deeper = paths_of(type(inside), depth - 1)
            found += deeper if field.metadata.get("inline") else [(field.name, *path) for path in deeper]
    return found


DOMAIN = [("domains", "web", key) for key in ("train", "valid", "format", "field", "supervise", "max_epochs", "split")]
SEARCH_PATHS = [*paths_of(SearchConfig), *DOMAIN, ("solve", "groups", "g"), ("solve", "groups", "g", "domains")]
LIFE_PATHS = [
    *paths_of(LifecycleConfig),
    *DOMAIN,
    *(("stages", 0, *path) for path in paths_of(StageConfig)),
    *(("architecture", key) for key in LIFE["architecture"]),
]
NO_NUMBERS = [float("nan"), float("inf"), -float("inf"), 10**400, 2**70, 0, -1, 1.5, True, None, "1e9", "1e999", "fast"]
NO_TEXTS = [
    "",
    "x" * 5000,
    "~nosuchuser/x",
    "\ud800",
    "a\x00b",
    "[/red]",
    "package://stdlib/../../x",
    "../x",
    "name\nname",
]
NO_MAPPINGS = [
    [],
    [[]],
    {},
    {"": 1},
    {1: 2},
    {"web": None},
    {"web": "x"},
    {"web": 0.9, "code": 0.9},
    [["uniform"]],
    [None],
]
WRONG = st.one_of(
    st.sampled_from([*NO_NUMBERS, *NO_TEXTS, *NO_MAPPINGS]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=4,
    ),
)


def with_value(content, path, value):
    changed = here = deepcopy(content)
    for key in path[:-1]:
        if isinstance(here, list):
            here = here[key]
            continue
        if not isinstance(here.get(key), dict | list):
            here[key] = {"train": here[key]} if isinstance(here.get(key), str) else {}
        here = here[key]
    here[path[-1]] = value
    return changed


def ends_in_our_words(*arguments):
    result = runner.invoke(app, [str(a) for a in arguments])
    fine = result.exception is None or isinstance(result.exception, SystemExit | OpMixError)
    assert fine, f"{arguments}: {result.exception!r}"
    return result


@pytest.mark.parametrize(
    ("verb", "base", "paths"), [("search", SEARCH, SEARCH_PATHS), ("run", LIFE, LIFE_PATHS)], ids=["search", "run"]
)
def test_no_value_of_any_setting_ends_in_a_traceback(verb, base, paths, tmp_path, monkeypatch):
    """The configuration is read, and its files looked for; the model is nowhere, so nothing can run."""
    monkeypatch.chdir(tmp_path)
    assert len(paths) > 60
    seen = set()

    @settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(paths), WRONG)
    def walk(path, value):
        seen.add(path)
        content = with_value(base, path, value)
        try:
            made = parse_config(content) if verb == "search" else validated(LifecycleConfig, content)
            for domain in made.domains.values():
                domain.located(tmp_path)
        except OpMixError as error:
            str(error)

    walk()
    assert len(seen) > 40


def trained_table(folder):
    rows = ["run,ratio_a,ratio_b,loss_x", *(f"r{i},{i / 10},{1 - i / 10},{3 - (i / 10 - 0.4) ** 2}" for i in range(11))]
    (folder / "t.csv").write_text("\n".join(rows))
    return folder / "t.csv"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    ends_in_our_words("fit", trained_table(folder), "--out", folder / "run")
    return folder / "run"


DAMAGE = {
    "empty": b"",
    "list": b"[]",
    "object": b"{}",
    "null": b"null",
    "text": b'"x"',
    "binary": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "huge": b'{"schema": 1e999, "mixture": {"a": 1e999}}',
}


@pytest.mark.parametrize("damage", [*DAMAGE, "half"])
def test_no_damaged_file_of_a_run_folder_ends_in_a_traceback(fitted, damage, tmp_path):
    names = (
        "mixture.json",
        "manifest.json",
        "law_draws.json",
        "tables/proxies.csv",
        "lock",
        "data.json",
        "timing.json",
    )
    run = tmp_path / "run"
    for name in names:
        shutil.copytree(fitted, run)
        whole = (run / name).read_bytes() if (run / name).is_file() else b'{"fingerprints": {}'
        (run / name).write_bytes(whole[: len(whole) // 2] if damage == "half" else DAMAGE[damage])
        for verb in (("status",), ("report",), ("export", "--to", "interleave"), ("verify",)):
            ends_in_our_words(verb[0], run, *verb[1:])
        shutil.rmtree(run)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_size(path):
    config = path.parent / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 48}))


def heads_that_do_not_divide(path):
    config = path.parent / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_attention_heads": 33}))


def as_torch_archive(path):
    path.with_name("pytorch_model.bin").write_bytes(b"garbage")
    path.unlink()


SPOILED = {
    "half": cut,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x00\xff" * 999),
    "another size": of_another_size,
    "heads": heads_that_do_not_divide,
    "no archive": as_torch_archive,
    "a list": lambda path: (path.parent / "config.json").write_text("[]"),
    "no numbers": lambda path: (path.parent / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": "big"}'
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    write_toy_domains(folder / "text", ["web", "code"], 40)
    content = {
        "model": "llama",
        "domains": {"web": "text/web.jsonl", "code": "text/code.jsonl"},
        "budget": 20000,
        "sequence_length": 64,
        "trainer": {"learning_rate": 1e-3},
        "cache_dir": "cache",
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.parametrize("kind", SPOILED)
def test_damaged_weights_are_told_by_validate_and_by_search(sound, kind, tmp_path):
    shutil.copytree(sound, tmp_path / "here")
    SPOILED[kind](tmp_path / "here" / "llama" / "model.safetensors")
    for verb in ("validate", "search"):
        result = ends_in_our_words(
            verb, tmp_path / "here" / "s.yaml", *(("--out", tmp_path / "o") * (verb == "search"))
        )
        assert result.exit_code == 1
        assert "llama" in result.output + str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "life.yaml"), "is for `opmix run`, not `opmix search`"),
        (("run", "search.yaml"), "is for `opmix search`, not `opmix run`"),
        (("compare", "life.yaml"), "is for `opmix run`, not `opmix compare`"),
        (("status", "."), "no run of opmix"),
        (("status", "x" * 300), "cannot be a path here"),
        (("report", "x" * 5000), "cannot be a path here"),
        (("fit", "x" * 300), "File name too long"),
        (("export", "x" * 5000, "--to", "trl"), "cannot be a path here"),
        (("search", "search.yaml", "--set", "model=NAME-OR-FOLDER-OF-YOUR-MODEL"), "still the placeholder"),
        (("search", "search.yaml", "--set", "model=~nosuchuser/x"), "cannot be a path here"),
        (("search", "search.yaml", "--set", "model=two words"), "cannot be a hub name"),
    ],
)
def test_what_is_meant_is_said(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "life.yaml").write_text(yaml.safe_dump(LIFE))
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    result = ends_in_our_words(*arguments)
    assert result.exit_code == 1
    assert said in str(result.exception) + result.output


@pytest.mark.parametrize("inside", ["../x", "a/../../x", "/etc/x"])
def test_a_package_path_stays_inside_its_package(inside, tmp_path):
    with pytest.raises(ConfigError, match="leads out of the package"):
        located(f"package://stdlib/{inside}", tmp_path)


def test_status_knows_the_folder_of_a_fit(fitted):
    content = json.loads(ends_in_our_words("status", fitted, "--json").stdout)
    assert content["steps"][-1]["name"] == "decision"
    assert content["steps"][-1]["state"] == "done"


def test_names_are_shown_as_they_are(tmp_path):
    table = trained_table(tmp_path)
    table.write_text(table.read_text().replace("ratio_a,", "ratio_a_[en],").replace("loss_x", "loss_[/red] :smile:"))
    shown = ends_in_our_words("fit", table, "--out", tmp_path / "[/red]")
    assert shown.exit_code == 0
    for name in ("a_[en]", "[/red] :smile:"):
        assert name in shown.output


def test_path_objects_are_paths_of_models_and_domains(tmp_path):
    domains = {"web": tmp_path / "a.jsonl", "code": {"train": [tmp_path / "b.jsonl", "c.jsonl"]}}
    made = parse_config({**SEARCH, "model": tmp_path / "model", "domains": domains})
    assert made.model.name == str(tmp_path / "model")
    assert made.domains["web"].train.paths == (str(tmp_path / "a.jsonl"),)
    assert made.domains["code"].train.paths == (str(tmp_path / "b.jsonl"), "c.jsonl")
