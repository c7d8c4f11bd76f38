"""Runs below a folder: found, listed, and served as pages to this machine alone."""

import json
import os
import shutil
import threading
import urllib.error
import urllib.request

import pytest
from comparison_sample import write_comparison
from life_sample import loss, stage
from typer.testing import CliRunner

import opmix
from opmix.cli.app import app
from opmix.errors import OpMixError
from opmix.report import write_report
from opmix.results.mixture import MixtureFile
from opmix.runs.store import RunStore
from opmix.view import RunServer, find_runs


def write_life(folder):
    losses = {"web": loss(5.0, 4.0), "code": loss(4.0, 3.0)}
    mixture = {"web": 0.25, "code": 0.75}
    over = {"mean": 0.5, "sd": None, "n": 1}
    content = {
        "schema": 1,
        "kind": "run",
        "units": "nats per token",
        "seeds": {"0": {"stages": [stage("late", "0", mixture, losses, {}, True)], "model": "m"}},
        "stages": [
            {
                "name": "late",
                "n": 1,
                "mixture": {d: {**over, "mean": x} for d, x in mixture.items()},
                "forgetting": {},
                "test_loss": {},
                "mean_test_loss": {**over, "mean": 3.5},
                "search_share": over,
            }
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "life.json").write_text(json.dumps(content))
    (folder / "manifest.json").write_text(json.dumps({"command": "run", "config": {}}))
    return folder


@pytest.fixture
def root(folders, tmp_path):
    """A search, a fit, a life with a search inside, a comparison, one that goes on, one that is damaged."""
    root = tmp_path / "runs"
    shutil.copytree(folders["continual"], root / "deep" / "search")
    shutil.copytree(folders["swarm"], root / "swarm")
    write_life(root / "life")
    shutil.copytree(folders["continual"], root / "life" / "seed-0" / "01-late" / "search-0")
    shutil.copytree(folders["rebalancing"], root / "life" / "seed-0" / "01-late" / "search-20")
    write_comparison(root / "compare")
    asked = opmix.AskTell(["web", "code"], budget=10**6, out=root / "asked")
    asked.tell({asked.ask()[0].name: None})
    shutil.copytree(folders["continual"], root / "broken")
    (root / "broken" / "mixture.json").write_text("{")
    (root / "no run").mkdir()
    return root


def test_every_run_is_found_once_and_says_what_it_is(root, folders):
    found = {line.path: line for line in find_runs(root)}
    assert set(found) == {"deep/search", "swarm", "life", "compare", "asked", "broken"}
    search = MixtureFile.read(folders["continual"])
    assert found["deep/search"].mixture == dict(search.mixture)
    assert found["deep/search"].action == search.decision.action
    assert found["life"].kind == "run"
    assert found["life"].mixture == {"web": 0.25, "code": 0.75}
    assert found["compare"].told.startswith("Use uniform: its mean test loss")
    assert (found["asked"].state, found["asked"].told.split(" runs")[0]) == (
        "stopped",
        f"1 of {len(opmix.AskTell.open(root / 'asked').runs)}",
    )
    assert found["broken"].state == "damaged"
    assert "mixture.json" in found["broken"].told


def test_a_run_that_goes_on_says_so(root):
    with RunStore(root / "now", "search") as store:
        store.step("probe-0", {}, dict)
        line = next(line for line in find_runs(root) if line.path == "now")
    assert (line.state, line.told) == ("running", "1 steps done")


def test_the_folder_itself_may_be_a_run(root):
    assert [line.path for line in find_runs(root / "swarm")] == ["."]
    with pytest.raises(OpMixError, match="no such folder"):
        find_runs(root / "nowhere")


def test_ls_prints_a_table_or_json(root):
    told = CliRunner().invoke(app, ["ls", str(root), "--json"])
    assert [line["path"] for line in json.loads(told.output)] == [line.path for line in find_runs(root)]
    table = CliRunner().invoke(app, ["ls", str(root)])
    assert table.exit_code == 0
    assert "damaged" in table.output


def test_status_tells_what_was_asked_and_what_is_told(root):
    told = json.loads(CliRunner().invoke(app, ["status", str(root / "asked"), "--json"]).output)
    states = {step["name"]: step["state"] for step in told["steps"]}
    assert states["run current"] == "done"
    assert states["run probe web"] == states["decision"] == "left"


@pytest.fixture
def get(root):
    with RunServer(root) as server:
        threading.Thread(
            target=server.serve_forever, args=(0.01,), daemon=True
        ).start()  # how late it sees that it shall stop

        def got(path, host=None):
            request = urllib.request.Request(server.address.rstrip("/") + path, headers={"Host": host} if host else {})
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return answer.status, answer.read().decode(), answer.headers
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode(), error.headers

        yield got
        server.shutdown()


def test_pages_show_list_comparison_history_and_reports(root, get):
    write_report(root / "swarm")
    code, text, headers = get("/")
    assert code == 200
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert 'href="/report/swarm/report.html"' in text
    assert 'value="deep/search"' in text
    assert 'value="life"' not in text  # no decision
    assert get("/list")[1] in text
    assert get("/report/swarm/report.html")[1] == (root / "swarm" / "report.html").read_text()
    both = get("/compare?run=deep/search&run=life/seed-0/01-late/search-20")[1]
    for folder in ("deep/search", "life/seed-0/01-late/search-20"):
        assert folder in both
        for domain in MixtureFile.read(root / folder).mixture:
            assert domain in both
    past = get("/history?run=life")[1]
    assert past.index("01-late, step 0 (seed-0)") < past.index("01-late, step 20 (seed-0)")
    assert get("/compare?run=swarm")[0] == 404
    assert get("/history?run=swarm")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/report/../secret/report.html",
        "/report/%2e%2e/secret/report.html",
        "/report//etc/report.html",
        "/report/out/report.html",
        "/compare?run=../secret&run=swarm",
        "/history?run=%00",
        "/manifest.json",
        "/report/swarm/manifest.json",
    ],
)
def test_nothing_else_is_read(root, get, path):
    secret = root.parent / "secret"
    shutil.copytree(root / "swarm", secret)
    (secret / "report.html").write_text("SECRET")
    (root / "out").symlink_to(secret)
    code, text, _ = get(path)
    assert code == 404
    assert "SECRET" not in text


def test_a_report_that_somebody_else_wrote_sees_no_other_page_and_no_network(root, get):
    (root / "swarm" / "report.html").write_text("<script>fetch('/list')</script>")
    headers = get("/report/swarm/report.html")[2]
    rules = {rule.split()[0]: rule.split()[1:] for rule in headers["Content-Security-Policy"].split("; ")}
    assert rules["sandbox"] == ["allow-scripts"]  # not allow-same-origin: its origin is its own
    assert rules["default-src"] == ["'none'"]
    assert "connect-src" not in rules


def test_a_report_that_leads_elsewhere_is_none(root, get):
    (root.parent / "secret.html").write_text("SECRET")
    page = root / "swarm" / "report.html"
    for make in (
        lambda: page.symlink_to(root.parent / "secret.html"),
        lambda: os.mkfifo(page),
        lambda: page.symlink_to(page),
    ):
        page.unlink(missing_ok=True)
        make()
        code, text, _ = get("/report/swarm/report.html")
        assert (code, "SECRET" in text) == (404, False)


def test_another_site_s_name_for_this_machine_is_refused(get):
    assert get("/", host="evil.example:80")[0] == 403


def test_names_are_text_and_no_markup(root, get):
    shutil.copytree(root / "swarm", root / "<img src=x onerror=alert(1)>")
    text = get("/")[1]
    assert "<img" not in text
    assert "&lt;img" in text


def test_a_port_that_is_taken_is_told(root):
    with RunServer(root) as first, pytest.raises(OpMixError, match="--port"):
        RunServer(root, first.server_address[1])
