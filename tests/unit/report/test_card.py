"""The card's section, in a README and on a hub that is not there."""

import json

import pytest
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.errors import ConfigError, StoreError
from opmix.report.card import BEGIN, END, Card, CardPart, run_card
from opmix.report.hub import push_run
from opmix.results.mixture import MixtureFile


def test_a_decision_s_section_says_what_the_file_says(folders):
    found, text = MixtureFile.read(folders["continual"]), run_card(folders["continual"]).section()
    assert text.startswith(BEGIN)
    assert text.rstrip().endswith(END)
    for name, share in found.mixture.items():
        assert f"| {name} | {share:.4f} |" in text
    assert found.decision.reason.split(":")[0] in text
    assert run_card(folders["continual"]).section() == text
    assert "| decision | `" in text


def test_no_interval_stands_beside_shares_that_are_not_its_own(edited):
    def kept(document):
        document["mixture"] = {d: 1 / len(document["mixture"]) for d in document["mixture"]}

    assert "interval |" not in run_card(edited(kept)).section()


def test_a_readme_keeps_what_somebody_wrote_and_is_written_once(tmp_path):
    first, second = (
        Card(parts=[CardPart(title="T", mixture={"web": share, "a|b": 1 - share})]) for share in (0.25, 0.5)
    )
    place = tmp_path / "README.md"
    place.write_text("# My model\n\nWords.\n")
    first.write(tmp_path)
    once = place.read_text()
    first.write(place)
    assert place.read_text() == once
    place.write_text(once + "\nMore words.\n")
    second.write(tmp_path)
    text = place.read_text()
    assert text.startswith("# My model\n\nWords.\n")
    assert text.endswith("\nMore words.\n")
    assert (text.count(BEGIN), text.count("0.5000"), text.count("0.2500")) == (1, 2, 0)
    assert "| a\\|b |" in text


def test_an_empty_folder_gets_a_head_that_the_hub_reads(tmp_path):
    import yaml

    Card(parts=[]).write(tmp_path)
    head = (tmp_path / "README.md").read_text().split("---")[1]
    assert yaml.safe_load(head)["tags"] == ["opmix"]


def test_the_verb_prints_or_writes(folders, tmp_path):
    run = str(folders["continual"])
    printed = CliRunner().invoke(app, ["card", run])
    assert printed.exit_code == 0
    assert printed.output == run_card(folders["continual"]).section()
    assert CliRunner().invoke(app, ["card", run, "--into", str(tmp_path)]).exit_code == 0
    assert printed.output in (tmp_path / "README.md").read_text()
    with pytest.raises(StoreError, match=r"mixture\.json"):
        run_card(tmp_path)


class FakeApi:
    """A hub in memory."""

    def __init__(self, error=None):
        self.error, self.files, self.made = error, {}, []

    def create_repo(self, repo_id, **options):
        if self.error is not None:
            raise self.error
        self.made.append((repo_id, options))
        return f"hub/{repo_id}"

    def upload_folder(self, *, folder_path, ignore_patterns, **options):
        from huggingface_hub.utils import filter_repo_objects

        names = [p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, ignore_patterns=ignore_patterns):
            self.files[name] = (folder_path / name).read_bytes()

    def upload_file(self, *, path_or_fileobj, path_in_repo, **options):
        self.files[path_in_repo] = path_or_fileobj


def test_what_is_pushed_is_the_decision_and_no_weights(folders, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(folders["continual"], run)
    for name in (
        "probes/old/adapter_model.safetensors",
        "lock",
        "search-0/probes/x.json",
        "model.safetensors",
        "logs/a.txt",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    api = FakeApi()
    assert push_run(run, "me/mixture", api=api) == "hub/me/mixture"
    assert api.made == [("me/mixture", {"repo_type": "dataset", "private": True, "exist_ok": True})]
    assert {"mixture.json", "README.md", "tables/proxies.csv"} <= set(api.files)
    assert not [n for n in api.files if "probes/" in n or n.endswith((".safetensors", "lock")) or n.startswith("logs")]
    assert json.loads(api.files["mixture.json"])["mixture"]
    assert BEGIN.encode() in api.files["README.md"]


def test_without_a_hub_the_error_says_so(folders, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    client = getattr(_http, "httpx2", None) or _http.httpx
    for error in (OSError("no route"), client.ConnectError("no name")):
        with pytest.raises(StoreError, match="cannot be reached"):
            push_run(folders["continual"], "me/mixture", api=FakeApi(error))
    with pytest.raises(ConfigError, match="ORG/NAME"):
        push_run(folders["continual"], "mixture", api=FakeApi())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE"):
        push_run(folders["continual"], "me/mixture")
