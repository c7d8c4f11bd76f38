import json
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from typer.models import ArgumentInfo
from typer.testing import CliRunner

import opmix.runs.run_folder as run_folder_module
from opmix.cli.app import app
from opmix.cli.main import main
from opmix.errors import ConfigError, DataError, StoreError

runner = CliRunner()
NO_PATH = "n" * 300


@pytest.fixture
def swarm(tmp_path):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 20)
    y = 2 + np.exp(p @ np.array([[-2.0, 0.3], [0.5, -1.0], [0.1, 0.4]])) + 1e-3 * rng.standard_normal((20, 2))
    ratios = ["run,a,b,c", *(f"r{i},{','.join(map(repr, map(float, row)))}" for i, row in enumerate(p))]
    metrics = ["run,x,y", *(f"r{i},{','.join(map(repr, map(float, row)))}" for i, row in enumerate(y))][::1]
    (tmp_path / "ratios.csv").write_text("\n".join(ratios))
    (tmp_path / "metrics.csv").write_text("\n".join([metrics[0], *reversed(metrics[1:])]))
    return tmp_path, p, y


def test_fit_prints_json_and_writes_a_folder(swarm):
    folder, p, y = swarm
    out = folder / "out"
    arguments = [
        "fit",
        str(folder / "ratios.csv"),
        str(folder / "metrics.csv"),
        "--predict",
        str(folder / "ratios.csv"),
        "--out",
        str(out),
        "--json",
    ]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert set(content["laws"]) == {"x", "y"}
    assert set(content["laws"]["x"]["t"]) == {"a", "b", "c"}
    assert {"optimum", "mixture", "decision", "interval", "laws", "alternatives", "solver", "timing"} <= set(content)
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "run,x,y"
    assert np.abs(np.array([[float(v) for v in line.split(",")[1:]] for line in lines[1:]]) - y).max() < 0.01
    for name in ("mixture.json", "timing.json", "manifest.json", "tables/proxies.csv", "report.html"):
        assert (out / name).exists()
    law = content["laws"]["x"]
    assert law["c"] + np.exp(sum(law["t"][d] * p[0, i] for i, d in enumerate("abc"))) == pytest.approx(
        y[0, 0], abs=0.01
    )


def _paths_of_verbs():
    """Every verb with each argument and option that is a path, the arguments before it given."""
    for verb in app.registered_commands:
        before = []
        for name, hint in get_type_hints(verb.callback, include_extras=True).items():
            kind, told = (*get_args(hint), None, None)[:2]
            if Path in (kind, *get_args(kind)) or list[Path] in get_args(kind):
                option = [d for d in (told.default, *(told.param_decls or ())) if str(d).startswith("--")][:1]
                yield pytest.param(verb.name, [*before, *option, NO_PATH], id=f"{verb.name}-{name}")
            before += ["x"] if isinstance(told, ArgumentInfo) else []


@pytest.mark.parametrize(("verb", "arguments"), _paths_of_verbs())
def test_what_no_system_takes_for_a_path_is_told_by_every_verb(verb, arguments):
    result = runner.invoke(app, [verb, *arguments])
    assert isinstance(result.exception, ConfigError), result.exception
    assert "cannot be a path here" in str(result.exception)


def test_a_corpus_that_no_system_takes_for_a_path_is_told(tmp_path):
    result = runner.invoke(app, ["discover", NO_PATH, "--out", str(tmp_path / "domains")])
    assert isinstance(result.exception, DataError)
    assert "cannot be a path here" in str(result.exception)


def test_fit_prints_tables_for_people(swarm):
    folder, *_ = swarm
    (folder / "prior.json").write_text('{"a": 0.2, "b": 0.4, "c": 0.4}')
    result = runner.invoke(
        app, ["fit", str(folder / "ratios.csv"), str(folder / "metrics.csv"), "--prior", str(folder / "prior.json")]
    )
    assert result.exit_code == 0, result.output
    assert "Token shares" in result.output
    assert "probability of a gain" in result.output


def test_bad_input_raises_our_errors(swarm):
    folder, *_ = swarm
    assert isinstance(runner.invoke(app, ["fit", str(folder / "none.csv")]).exception, DataError)
    assert isinstance(
        runner.invoke(app, ["fit", str(folder / "ratios.csv"), str(folder / "metrics.csv"), "--kl", "-1"]).exception,
        ConfigError,
    )
    (folder / "s.yaml").write_text("model: m\nbudgt: 3\n")
    assert isinstance(runner.invoke(app, ["search", str(folder / "s.yaml")]).exception, ConfigError)


def test_errors_are_one_message_without_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["opmix", "fit", str(tmp_path / "none.csv")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "none.csv" in said
    assert "Traceback" not in said


TORCH = {"torch", "transformers", "matplotlib"}


def test_what_every_command_starts_with_loads_little():
    heavy = TORCH | {"numpy", "pydantic", "rich"}
    code = (
        f"import sys\nfor name in ('opmix', 'opmix.cli.main'):\n    __import__(name)\n"
        f"    assert not {heavy!r} & set(sys.modules), name\nprint(len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 600


def test_fit_and_report_load_neither_torch_nor_scipy(swarm):
    folder, *_ = swarm
    code = (
        "import sys\nimport clarabel, numpy\nlight = lambda m: {n for n in m if n.startswith('scipy')}\n"
        "before = light(sys.modules)\nfrom typer.testing import CliRunner\nfrom opmix.cli.app import app\n"
        f"import opmix.mixing, opmix.config, opmix.fit, opmix.report, opmix.results\nassert not {TORCH!r} & set(sys.modules)\n"
        f"r = CliRunner().invoke(app, {['fit', *(str(folder / n) for n in ('ratios.csv', 'metrics.csv')), '--out', str(folder / 'o')]!r})\n"
        "assert r.exit_code == 0, r.output\nassert 'torch' not in sys.modules\n"
        "assert light(sys.modules) == before, light(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def loaded_by(*arguments):
    """Names of the modules that a process of `opmix` has loaded when it ends."""
    code = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = {['opmix', *map(str, arguments)]!r}\nfrom opmix.cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


MATHEMATICS = {"opmix.config", "opmix.methods", "opmix.mixing.decision", "opmix.mixing.solver", *TORCH}


def test_every_verb_loads_what_it_needs(swarm):
    """Start-up is modules: what is won here is not to come back with an import (docs/performance.md has the seconds)."""
    folder, *_ = swarm
    run, tables = folder / "o", [folder / "ratios.csv", folder / "metrics.csv"]
    sizes = ["--tokens", "1e6", "--row-tokens", "100"]
    found = {
        "--help": loaded_by("--help"),
        "fit": loaded_by("fit", *tables),
        "report": loaded_by("fit", *tables, "--out", run),
        "status": loaded_by("status", run),
        "export": loaded_by("export", run, "--to", "trl", *sizes, "--path", "data/{domain}.jsonl"),
    }
    code = "import json, sys, numpy; print(json.dumps(sorted(sys.modules)))"  # older ones read their masked arrays themselves
    numpys = set(json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))
    needless = {"scipy.optimize", "numpy.ma", "rich.progress", "asyncio", "polars", "pyarrow"} - numpys
    own = {
        "--help": {"rich", "pydantic", "numpy"} | MATHEMATICS,
        "fit": {"yaml", "opmix.results.life", "opmix.results.comparison", "opmix.cli.run"} | TORCH,
        "report": {"yaml", "opmix.cli.run"} | TORCH,
        "status": {"numpy", "yaml", "opmix.mixing", "opmix.cli.fit"} | MATHEMATICS,
        "export": {"opmix.mixing.problem", "opmix.cli.fit"} | MATHEMATICS,
    }
    assert {verb: (needless | own[verb]) & modules for verb, modules in found.items()} == {
        verb: set() for verb in found
    }
    most = {
        "--help": 40,
        "status": 40,
        "export": 56,
        "fit": 80,
        "report": 110,
    }  # of our own: packages differ by version
    loaded = {verb: sum(name.startswith("opmix") for name in modules) for verb, modules in found.items()}
    assert {verb: count for verb, count in loaded.items() if count > most[verb]} == {}, loaded


def scored(folder):
    rng = np.random.default_rng(1)
    share = rng.dirichlet(np.ones(3), 24)
    accuracy = 0.2 + 0.5 * share[:, 2] + 1e-3 * rng.standard_normal(24)
    rows = [f"r{i},{a!r},{b!r},{c!r}" for i, (a, b, c) in enumerate(share.tolist())]
    (folder / "ratios.csv").write_text("\n".join(["run,web,code,math", *rows]))
    metrics = ["run,gsm8k_acc,web_loss", *(f"r{i},{a!r},3.0" for i, a in enumerate(accuracy.tolist()))]
    (folder / "scores.csv").write_text("\n".join(metrics))
    return [str(folder / "ratios.csv"), str(folder / "scores.csv")]


def test_fit_of_a_score_goes_the_way_that_is_said(tmp_path):
    tables = scored(tmp_path)
    with pytest.raises(DataError, match="reads like a score"):
        runner.invoke(app, ["fit", *tables], catch_exceptions=False)
    asked = ["--maximize", "gsm8k_acc", "--metrics", "gsm8k_acc", "--kl", "0.001", "--json"]
    result = runner.invoke(app, ["fit", *tables, *asked], catch_exceptions=False)
    assert json.loads(result.stdout)["optimum"]["math"] > 0.9


@pytest.mark.slow
def test_fit_obeys_objective_weights_limits_and_shares(swarm):
    folder, *_ = swarm
    tables = [str(folder / "ratios.csv"), str(folder / "metrics.csv")]

    def optimum(*asked):
        result = runner.invoke(app, ["fit", *tables, "--json", "--kl", "0.001", *asked], catch_exceptions=False)
        found = json.loads(result.stdout)
        proposal = next(a for a in found["alternatives"] if a["name"] == "proposal")
        return found["optimum"], proposal["predicted"], found["alternatives"]

    x_only, predicted, _ = optimum("--objective", "weighted", "--weights", "x=1")
    y_only, _, _ = optimum("--objective", "weighted", "--weights", "y=1")
    assert x_only["a"] > 0.8
    assert y_only["b"] > 0.8
    limited, kept, alternatives = optimum("--objective", "weighted", "--weights", "x=1", "--limit", "y=1")
    prior = next(a for a in alternatives if a["name"] == "prior")
    assert kept["y"] <= 1.0101 * prior["predicted"]["y"] < predicted["y"]
    assert limited["a"] < x_only["a"]
    bounded, _, _ = optimum("--fixed", "c=0.25", "--ceiling", "a=0.3", "--floor", "b=0.1")
    assert bounded["c"] == pytest.approx(0.25, abs=1e-6)
    assert bounded["a"] <= 0.3 + 1e-6


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--weights", "x=1"], "only then"),
        (["--objective", "weighted"], "METRIC=WEIGHT"),
        (["--objective", "weighted", "--weights", "z=1"], "unknown metric"),
        (["--objective", "weighted", "--weights", "x=0,y=0"], "all are 0"),
        (["--objective", "weighted", "--weights", "x=-1"], ">= 0"),
        (["--weights", "x"], "NAME=NUMBER"),
        (["--limit", "x=nan"], "expected a number"),
        (["--limit", "q=1"], "unknown metric"),
        (["--floor", "a=0.5,a=0.6"], "twice"),
        (["--ceiling", "a=2"], "share in"),
        (["--kl", "nan"], "--kl"),
    ],
)
def test_wrong_values_of_fit_are_one_clear_error(swarm, asked, message):
    folder, *_ = swarm
    with pytest.raises(ConfigError, match=message):
        runner.invoke(
            app, ["fit", str(folder / "ratios.csv"), str(folder / "metrics.csv"), *asked], catch_exceptions=False
        )


def test_fit_overwrites_no_run_of_another_command(swarm):
    folder, *_ = swarm
    tables = [str(folder / "ratios.csv"), str(folder / "metrics.csv")]
    (folder / "run").mkdir()
    (folder / "run" / "manifest.json").write_text('{"command": "search"}')
    with pytest.raises(StoreError, match="holds a run of `opmix search`"):
        runner.invoke(app, ["fit", *tables, "--out", str(folder / "run")], catch_exceptions=False)
    assert not (folder / "run" / "mixture.json").exists()


def test_fit_leaves_no_stale_predictions(swarm):
    folder, *_ = swarm
    tables, out = [str(folder / "ratios.csv"), str(folder / "metrics.csv")], folder / "out"
    runner.invoke(app, ["fit", *tables, "--predict", tables[0], "--out", str(out)], catch_exceptions=False)
    assert (out / "predictions.csv").exists()
    runner.invoke(app, ["fit", *tables, "--kl", "0.5", "--out", str(out)], catch_exceptions=False)
    assert not (out / "predictions.csv").exists()


def test_a_failed_verb_leaves_its_store_and_does_not_say_that_it_kept_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen = []
    whole = run_folder_module._Kept.end

    def end(self, *, failed=False):
        seen.append(failed)
        whole(self, failed=failed)

    monkeypatch.setattr(run_folder_module._Kept, "end", end)
    made = runner.invoke(app, ["fit", str(tmp_path / "nothing.csv"), "--out", f"file://{tmp_path}/kept"])
    assert made.exit_code != 0
    assert seen == [True]
    assert "kept at" not in made.output
    assert not (tmp_path / "kept" / "lock").exists()
