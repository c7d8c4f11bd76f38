"""`torchrun -m opmix`: a life, begun on two ranks and gone on with by one process, and answers counted by two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats, write_toy_domains

pytestmark = pytest.mark.cluster
NAMES = ["web", "code", "math"]


def opmix(*words, ranks=1, fails=False, timeout=500):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "opmix", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (ended.returncode != 0) == fails, ended.stderr[-4000:]
    return ended


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    folder = tmp_path_factory.mktemp("life")
    paths = write_toy_domains(folder, NAMES, num_documents=120, seed=0)
    content = {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
        "tokenizer": {"vocab_size": 400, "documents": 50},
        "sequence_length": 32,
        "domains": {n: {"train": str(p), "holdout": 0.15} for n, p in paths.items()},
        "trainer": {"learning_rate": 3e-3, "batch": 8, "micro_batch": 2},
        "probes": {"steps": 4, "rank": 2},
        "proxies": {"eval_sequences": 8},
        "decision": {"draws": 20},
        "evaluation": {"sequences": 7},
        "cache_dir": str(folder / "cache"),
        "stages": [
            {"name": "base", "phase": "pretraining", "domains": ["web", "code"], "tokens": 4096, "mixture": "uniform"},
            {"name": "math", "phase": "midtraining", "add": ["math"], "tokens": 2048, "optimizer": "continued"},
        ],
    }
    file = folder / "life.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def losses_of(folder):
    content = json.loads((folder / "life.json").read_text())
    stages = content["seeds"]["0"]["stages"]
    after = [{n: x["after"] for n, x in stage["losses"]["test"].items()} for stage in stages]
    return [stage["mixture"] for stage in stages], after


def keys_of(folder):
    return {
        str(p.relative_to(folder)): json.loads(p.read_text())["fingerprint"] for p in folder.glob("steps/**/*.json")
    }


def test_a_life_on_two_ranks_is_the_life_of_one_process(life, tmp_path):
    opmix("run", life, "--out", tmp_path / "one")
    opmix("run", life, "--out", tmp_path / "two", ranks=2)
    assert keys_of(tmp_path / "one") == keys_of(tmp_path / "two")
    (mixtures, losses), (others, near) = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    for one, two in zip(mixtures, others, strict=True):
        assert two == pytest.approx(one, abs=1e-3)
    for one, two in zip(losses, near, strict=True):
        assert two == pytest.approx(one, abs=1e-3)
    before = (tmp_path / "two" / "life.json").read_bytes()
    said = opmix("run", life, "--out", tmp_path / "two")  # everything is found by one process
    assert "train" not in said.stderr
    assert (tmp_path / "two" / "life.json").read_bytes() == before


def test_the_searches_of_a_life_in_processes_of_their_own_give_the_same_bytes(life, tmp_path):
    opmix("run", life, "--out", tmp_path / "one")
    opmix("run", life, "--out", tmp_path / "slots", "--set", "executor.slots=2")
    one, slots = ((tmp_path / name / "life.json").read_bytes() for name in ("one", "slots"))
    assert one == slots
    assert not list((tmp_path / "slots").glob("**/tasks/copy"))


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_example_starts_ranks(life, tmp_path, launcher):
    """`examples/cluster/ranks.sh`, with either launcher."""
    script = Path(__file__).parents[3] / "examples" / "cluster" / "ranks.sh"
    told = {"RANKS": "2", "LAUNCHER": launcher, "OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ["bash", str(script), str(life), str(tmp_path / "run")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=500, env={**os.environ, **told, "PATH": path})
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert (tmp_path / "run" / "life.json").is_file()


def test_what_ranks_cannot_do_is_refused_by_name(life, tmp_path):
    content = yaml.safe_load(life.read_text())
    content["trainer"] = {"learning_rate": 3e-3, "per_device_train_batch_size": 4}
    file = tmp_path / "life.yaml"
    file.write_text(yaml.safe_dump(content))
    for settings, said in (
        ([], "trainer.batch: missing; with 2 ranks say the rows of an optimizer step"),
        (["--set", "trainer={batch: 9}"], "trainer.batch: 9 rows for 2 ranks; expected a multiple of 2"),
    ):
        ended = opmix("run", file, "--out", tmp_path / "run", *settings, ranks=2, fails=True)
        assert said in ended.stderr
        assert not (tmp_path / "run").exists()


def test_answers_are_shared_out(tmp_path):
    tokenizer = tiny_chat_tokenizer()
    for part in (tiny_model(vocab_size=len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "model")
    file = write_toy_chats(tmp_path, {"terse": 1}, 15)["terse"]
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        words = ("--domain", file, "--extractor", "first_word", "--max-new-tokens", 4, "--out", out)
        opmix("eval", tmp_path / "model", *words, ranks=ranks)
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]
