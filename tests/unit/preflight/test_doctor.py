import json
from importlib import metadata

import pytest
import yaml
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.preflight import examine, failed, machine, packages
from opmix.preflight.checks import Findings
from opmix.preflight.doctor import _check_need

runner = CliRunner()


def status(findings: Findings) -> dict[str, str]:
    return {c.name: c.status for c in findings.checks}


def test_this_machine_is_fit():
    checks = examine()
    assert not failed(checks), [c for c in checks if c.status == "fail"]
    names = {c.name for c in checks}
    assert {
        "python",
        "torch",
        "transformers",
        "device",
        "memory",
        "threads",
        "hub",
        "disk (cache)",
        "disk (run folder)",
    } <= names
    assert all(c.remedy for c in checks if c.status != "ok")


def test_versions_out_of_range_and_missing_packages_fail(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return {"torch": "1.0"}.get(name) or real(name)

    monkeypatch.setattr(packages.metadata, "version", version)
    findings = Findings()
    packages.check_packages(findings)
    found = {c.name: c for c in findings.checks}
    assert found["torch"].status == found["peft"].status == "fail"
    assert "pip install 'peft>=" in found["peft"].remedy
    assert found["numpy"].status == "ok"


def test_not_installed_is_a_warning(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "version", version)
    findings = Findings()
    packages.check_packages(findings)
    assert status(findings) == {"opmix": "warn"}


@pytest.mark.parametrize(
    ("setting", "load", "expected"),
    [("64", 0.0, "warn"), ("2", 0.0, "ok"), ("2", 3.0, "warn"), ("1", 3.0, "ok"), ("", 0.0, "ok"), ("x", 0.0, "warn")],
)
def test_threads(monkeypatch, setting, load, expected):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    findings = Findings()
    machine.check_threads(findings)
    assert status(findings) == {"threads": expected}


def test_disks(monkeypatch, tmp_path):
    for free, expected in ((1e12, "ok"), (1e9, "warn"), (1e6, "fail")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path, free=free: type("U", (), {"free": free}))
        findings = Findings()
        machine.check_disk(findings, tmp_path / "a" / "b", tmp_path)
        assert set(status(findings).values()) == {expected}


def test_memory_and_hub(monkeypatch, tmp_path):
    for free, expected in ((None, "warn"), (1e9, "warn"), (64e9, "ok")):
        monkeypatch.setattr(machine, "free_memory", lambda free=free: free)
        findings = Findings()
        machine.check_memory(findings)
        assert status(findings) == {"memory": expected}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    findings = Findings()
    machine.check_hub(findings)
    assert status(findings) == {"hub": "warn"}
    (tmp_path / "models--a--b").mkdir()
    findings = Findings()
    machine.check_hub(findings)
    assert status(findings) == {"hub": "ok"}


def test_free_memory_and_cores_are_sensible():
    free = machine.free_memory()
    assert free is None or 1e7 < free < 1e14
    assert 1 <= machine.cores() <= 4096


@pytest.mark.parametrize(("free", "expected"), [(None, "warn"), (1e9, "fail"), (2.2e9, "warn"), (9e9, "ok")])
def test_estimates_are_held_against_memory(free, expected):
    findings = Findings()
    _check_need(2e9, (free, "memory"), findings)
    assert status(findings) == {"config: memory": expected}


@pytest.mark.slow
def test_with_a_configuration(corpus, tiny_folder, tmp_path):
    path = tmp_path / "search.yaml"
    content = {
        "model": str(tiny_folder),
        "domains": {n: str(corpus / n / "train.jsonl.gz") for n in ("alpha", "beta")},
        "budget": {"tokens": 30_000},
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-3},
        "cache_dir": str(tmp_path / "cache"),
    }
    path.write_text(yaml.safe_dump(content))
    good = runner.invoke(app, ["doctor", str(path)])
    assert good.exit_code == 0, good.output
    assert "config: memory" in good.output
    assert "config: disk for tokens" in good.output
    path.write_text(yaml.safe_dump({**content, "sequence_length": 4096}))
    bad = runner.invoke(app, ["doctor", str(path), "--json"])
    assert bad.exit_code == 1
    checks = json.loads(bad.stdout)["checks"]
    assert any(c["name"] == "sequence_length" and c["status"] == "fail" and c["remedy"] for c in checks)
