"""What SECURITY.md excludes is not in the source, and a hostile run folder does no harm."""

import ast
import json
import os
import random
import re
import shutil
import signal
import tarfile
from html.parser import HTMLParser
from itertools import cycle
from pathlib import Path

import pytest
from typer.testing import CliRunner

import opmix
from opmix.cli.app import app
from opmix.errors import OpMixError
from opmix.exporters import EXPORTERS

SOURCE = sorted(Path(opmix.__file__).parent.rglob("*.py"))
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
}


def name_of(function):
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute):
        inside = name_of(function.value)
        return None if inside is None else f"{inside}.{function.attr}"
    return None


ANY = re.compile(rf"\b({'|'.join(sorted({name.rpartition('.')[2] for name in FORBIDDEN} | {'load', 'shell'}))})\b")


def dangerous(text):
    """Calls that run code or read pickles, with their line; where none of their names stands, nothing needs to be parsed."""
    if not ANY.search(text):
        return
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func) or ""
        given = {k.arg: k.value for k in node.keywords}
        loose = name == "torch.load" and not _is(given.get("weights_only"), True)
        pickles = name.endswith("np.load") and _is(given.get("allow_pickle"), True)
        shell = "shell" in given and not _is(given["shell"], False)
        if name in FORBIDDEN or loose or pickles or shell:
            yield f"{node.lineno}: {name}"


def _is(node, value):
    return isinstance(node, ast.Constant) and node.value is value


def test_no_code_is_run_and_no_pickle_read():
    assert len(SOURCE) > 200
    assert [f"{path.name}:{found}" for path in SOURCE for found in dangerous(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "pickle.load(file)",
        "yaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert list(dangerous(line))


KEPT = Path(__file__).parents[1] / "data" / "runs-0.1.0.tar.gz"
RUNS = ("search", "life", "compare", "fit")
EVIL = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "=HYPERLINK(1)",
    "[/red][link=x]",
    "\x1b]0;x\x07\x1b[2J",
    "../../outside/written",
    "a\nimport os; os.system('touch outside/ran')\n#",
    "$(touch outside/ran)`touch outside/ran`",
    "{{ 7*7 }}{% raw %}",
    "package://opmix/../../x",
    "x" * 5000,
    "\ud800",
)
PICKLE = b"cos\nsystem\n(S'touch outside/ran'\ntR."
VERBS = (
    *(["status", "RUN"], ["status", "RUN", "--json"], ["ls", "."], ["ls", ".", "--json"], ["report", "RUN"]),
    *(["card", "RUN"], ["verify", "RUN"], ["push", "RUN", "--to", "a/b"], ["eval", "RUN", "--domain", "t.csv"]),
    *(["search", "s.yaml", "--out", "RUN"], ["run", "l.yaml", "--out", "RUN"], ["fit", "t.csv", "--out", "RUN"]),
    *(["compare", "c.yaml", "--out", "RUN"], ["task", "RUN", "probe-0"]),
    *(["export", "RUN", "--to", name, "--path", "d/{domain}.jsonl"] for name in EXPORTERS),
)


class Page(HTMLParser):
    """Elements and attributes that a page of ours has none of."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        wrong = tag in ("img", "iframe", "object", "embed", "base") or any(name.startswith("on") for name, _ in attrs)
        self.found += [(tag, attrs)] if wrong else []

    def handle_data(self, data):
        self.found += [data] if self.cdata_elem == "script" and "alert(1)" in data.partition("=")[0] else []


def spoiled(value, draw, keys):
    """The value with some of its texts, numbers and keys as somebody with bad intentions would write them."""
    if isinstance(value, dict):
        kept = {k: spoiled(v, draw, keys) for k, v in value.items()}
        return {(draw.choice(EVIL) if keys and draw.random() < 0.2 else k): v for k, v in kept.items()}
    if isinstance(value, list):
        return [spoiled(item, draw, keys) for item in value]
    if isinstance(value, str):
        return draw.choice(EVIL) if draw.random() < 0.5 else value
    return draw.choice([10**400, 1e308, -1, float("nan"), value, value, value]) if draw.random() < 0.1 else value


def files_of(run):
    return [path for path in sorted(run.rglob("*")) if path.is_file()]


def as_texts(run, draw, keys=False):
    for path in files_of(run):
        if path.suffix == ".json":
            content = spoiled(json.loads(path.read_text()), draw, keys)
            path.write_text(json.dumps({**content, "schema": 1}))
        elif path.suffix == ".csv":
            cells = [EVIL[0], "=1+1", '"\x1b[2J"', "9" * 400, "nan"]
            lines = path.read_text().splitlines()
            path.write_text("\n".join(draw.choice(cells) + line[line.find(",") :] for line in lines))


def as_keys(run, draw):
    as_texts(run, draw, keys=True)


def as_links(run, draw):
    for path in files_of(run):
        path.unlink()
        path.symlink_to(run.parent / "outside" / draw.choice(["secret", "nothing", path.name]))


def as_pipes(run, draw):
    for path in files_of(run):
        if draw.random() < 0.5:
            path.unlink()
            os.mkfifo(path)


def as_pickles(run, draw):
    for path in files_of(run):
        if path.suffix != ".json" or draw.random() < 0.3:
            path.write_bytes(PICKLE)
    for name in ("optimizer.pt", "pytorch_model.bin", "adapter_model.bin", "training_args.bin", "asked.json"):
        (run / name).write_bytes(PICKLE)


def as_folders(run, draw):
    for path in files_of(run):
        if draw.random() < 0.5:
            path.unlink()
            path.mkdir()


def as_a_page(run, draw):
    (run / "report.html").write_text("<script>alert(1)</script>")
    for name in ("events.jsonl", "trace.jsonl", "progress.json"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(run.parent / "outside" / "secret")


KINDS = (as_texts, as_keys, as_links, as_pipes, as_pickles, as_folders, as_a_page)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(KEPT) as archive:
        archive.extractall(folder, filter="data")
    return folder


def hangs(*_):
    raise BaseException("waits for ever")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hostile"), [*(("search", kind) for kind in KINDS), *zip(cycle(RUNS[1:]), KINDS, strict=False)]
)
def test_a_hostile_run_folder_is_read_by_every_verb(name, hostile, kept, tmp_path, monkeypatch):
    """Each ends in a result or in words of ours; no code is run, nothing is written outside, and pages hold text alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("SECRET")
    (tmp_path / "t.csv").write_text(
        "run,ratio_a,ratio_b,loss_x\n" + "".join(f"r{i},0.{i},0.{9 - i}\n" for i in range(9))
    )
    config = {"model": "nowhere", "domains": {"web": "a.jsonl", "code": "b.jsonl"}}
    life = {**config, "old_mixture": {"web": 1}, "stages": [{"name": "a", "tokens": 1000, "mixture": "uniform"}]}
    (tmp_path / "s.yaml").write_text(json.dumps({**config, "budget": 1000}))
    (tmp_path / "l.yaml").write_text(json.dumps(life))
    (tmp_path / "c.yaml").write_text(json.dumps({**life, "methods": {"uniform": {}}}))
    shutil.copytree(kept / name, tmp_path / "whole")
    signal.signal(signal.SIGALRM, hangs)
    for verb in VERBS:
        if verb[0] == "export" and verb[3] != "axolotl" and hostile not in (as_texts, as_keys):
            continue  # what it says is read before any format is asked
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        hostile(tmp_path / "run", random.Random(name))
        signal.alarm(300)
        ended = CliRunner().invoke(app, [a.replace("RUN", "run") for a in verb], catch_exceptions=True)
        signal.alarm(0)
        error = ended.exception
        assert error is None or isinstance(error, SystemExit | OpMixError), f"{verb}: {error!r}"
        assert "SECRET" not in ended.output
        assert [p.name for p in (tmp_path / "outside").iterdir()] == ["secret"], verb
        assert (tmp_path / "outside" / "secret").read_text() == "SECRET", verb
        assert "\x1b]" not in ended.output
        for page in (tmp_path / "run").rglob("report.html") if verb[0] == "report" and ended.exit_code == 0 else ():
            read = Page()
            read.feed(page.read_text())
            assert read.found == []
        shutil.rmtree(tmp_path / "run")
