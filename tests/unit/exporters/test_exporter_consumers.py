"""Exported files in the hands of the trainers themselves, where those are installed; see docs/export.md.

OPMIX_TRAINERS: folders (as in PATH) with trainers and what they need, searched behind this environment's packages.
"""

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from consumers import skip_without
from export_shares import MIXTURE
from typer.testing import CliRunner

from opmix.cli.app import app

SCRIPTS = Path(__file__).parent / "consumers"
FOLDERS = [*sys.path, *filter(None, os.environ.get("OPMIX_TRAINERS", "").split(os.pathsep))]
BUDGET = 250_000  # two epochs of the mathematics and the web, less than one of the code

# Exporter: module that must be there, tolerance of the shares (random draws or whole rows), epochs are checked.
CONSUMERS = {
    "trl": ("trl", 0.01, True),
    "axolotl": ("axolotl", 0.01, True),
    "llamafactory": ("llamafactory", 0.015, True),
    "olmo-core": ("olmo_core", 0.002, False),
    "torchtitan": ("torchtitan", 0.015, False),
    "megatron": ("megatron", 0.001, False),
    "streaming": ("streaming", 0.001, False),
    "litdata": ("litdata", 0.02, False),
    "llm-foundry": ("llmfoundry", 0.001, False),
    "nanotron": ("nanotron", 0.001, False),
}


@pytest.mark.slow
@pytest.mark.consumer
@pytest.mark.parametrize("name", CONSUMERS)
def test_the_trainer_reads_it_and_draws_the_mixture(make_run, corpus, tmp_path, name):
    module, tolerance, epochs = CONSUMERS[name]
    skip_without(module, importlib.machinery.PathFinder.find_spec(module, FOLDERS))
    out, work = tmp_path / "exported" / "mixture.txt", tmp_path / "work"
    out = out.with_suffix(".yaml" if name == "trl" else ".txt")  # TRL tells YAML by the suffix
    work.mkdir()
    done = CliRunner().invoke(app, ["export", str(make_run(budget=BUDGET)), "--to", name, "--out", str(out)])
    assert done.exit_code == 0, done.exception
    script = SCRIPTS / f"{name.replace('-', '_')}_check.py"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(out), str(corpus.folder), str(work)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    if ran.returncode == 77:
        pytest.skip(ran.stderr.splitlines()[-1])
    assert ran.returncode == 0, ran.stderr[-3000:]
    answer = json.loads(ran.stdout.strip().splitlines()[-1])
    assert answer["shares"] == pytest.approx({n: s for n, s in MIXTURE.items() if s}, abs=tolerance)
    if epochs:
        assert answer["tokens"] * answer["epochs"] == pytest.approx(BUDGET, rel=0.05)
    sys.stdout.write(f"{name}: {answer}\n")
