"""`opmix verify` on a two-layer model: direct adapters against interpolation, refining, full training, and clear refusals."""

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import opmix
from opmix.cli.app import app
from opmix.errors import ConfigError, StoreError
from opmix.mixture_search.verify import verify_run
from opmix.models.layers import model_fingerprint
from opmix.probes import tasks
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

NAMES = ["web", "code", "math"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished rebalancing search, from a file, over a checkpoint with relative paths."""
    folder = tmp_path_factory.mktemp("verify")
    write_toy_domains(folder, NAMES, num_documents=120, seed=0)
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = {
        "model": "model",
        "domains": {n: f"{n}.jsonl" for n in NAMES},
        "budget": {"tokens": 20_000},
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-2, "per_device_train_batch_size": 4},
        "probes": {"steps": 4, "rank": 4},
        "proxies": {"eval_sequences": 6, "count": 6},
        "decision": {"draws": 10},
        "cache_dir": str(folder / "cache"),
        "law": "log_linear",
    }
    (folder / "search.yaml").write_text(yaml.safe_dump(config))
    made = CliRunner().invoke(app, ["search", str(folder / "search.yaml"), "--out", str(folder / "run"), "--json"])
    assert made.exit_code == 0, made.output
    return folder / "run"


def test_verify_trains_only_what_is_new_and_resumes(run, monkeypatch):
    trained = []
    real = tasks.run_training
    monkeypatch.setattr(tasks, "run_training", lambda *a: trained.append(1) or real(*a))
    first = verify_run(run, points=1)
    assert len(trained) <= 2
    assert verify_run(run, points=1).json() == first.json()
    assert len(trained) <= 2
    proposal = first.points[0]
    assert dict(proposal.mixture) == pytest.approx(json.loads((run / "mixture.json").read_text())["optimum"])
    assert np.all(proposal.kl > 0)
    assert np.all(proposal.kl < 0.5)
    assert np.all(np.isfinite(proposal.error))
    assert first.measured.names[0] == "proposal"
    assert "probe old" in first.measured.names
    assert first.measured.regret_bound >= first.measured.regret >= 0
    assert first.flops > 0
    assert "Is the simulation true?" in (run / "report.html").read_text()


def test_refining_adds_vertices_until_it_settles_or_says_why_not(run):
    found = verify_run(run)
    from opmix.config import parse_config
    from opmix.mixture_search.context import SearchContext
    from opmix.mixture_search.refine import refined
    from opmix.mixture_search.reload import load_search
    from opmix.progress import Silent
    from opmix.runs.store import RunStore

    manifest = json.loads((run / "manifest.json").read_text())
    with RunStore(run) as store:
        context = SearchContext(parse_config(manifest["config"]), run.parent, store, Silent(), None)
        context.prepare(None, None)
        finished = load_search(context)
        eager = refined(finished, found.points[0], found.measured, -1.0, max_rounds=2)
        content = refined(finished, found.points[0], found.measured, 1e6, max_rounds=2)
    assert len(eager["rounds"]) == 2
    assert "cap of 2 rounds" in eager["reason"]
    assert [r["added"] for r in eager["rounds"]] == ["proposal", "refined-1"]
    assert sum(eager["mixture"].values()) == pytest.approx(1)
    assert eager["best"] in ("probe proposal", "probe refined-1")
    assert content["rounds"] == []
    assert "not needed" in content["reason"]


def test_a_search_without_interpolation_is_not_refined_and_says_why():
    from types import SimpleNamespace

    from opmix.mixing.effective_tokens import EffectiveTokensLaw, Tokens
    from opmix.mixture_search.refine import refined

    names, ones = ("a", "b"), np.ones(2)
    law = EffectiveTokensLaw(names, names, ones, ones, np.eye(2), 0.7, Tokens(1.0, np.full(2, np.inf)))
    proposal = SimpleNamespace(fit=SimpleNamespace(law=law))
    found = SimpleNamespace(design=None, simulated=None, proposal=proposal, recommended={"a": 0.25, "b": 0.75})
    content = refined(found, None, None, -1.0, max_rounds=2)
    assert content["rounds"] == []
    assert "nothing was interpolated" in content["reason"]
    assert content["mixture"] == {"a": 0.25, "b": 0.75}


def test_the_command_prints_and_writes(run):
    made = CliRunner().invoke(app, ["verify", str(run), "--full", "--refine", "--max-rounds", "1", "--json"])
    assert made.exit_code == 0, made.output
    content = json.loads((run / "verification.json").read_text())
    assert content["full"]["tokens"] == 4 * 4 * 32
    assert content["full"]["against"] == "current"
    assert set(content["full"]["losses"]) == {"proposal", "current"}
    assert content["refinement"]["reason"]
    shown = CliRunner().invoke(app, ["verify", str(run)])
    assert "interpolated" in shown.output
    assert "can cost the decision" in shown.output.replace("\n", " ")


def test_a_search_can_verify_and_refine_in_one_go(run, tmp_path):
    config = str(run.parent / "search.yaml")
    made = CliRunner().invoke(app, ["search", config, "--out", str(tmp_path / "run"), "--refine", "--json"])
    assert made.exit_code == 0, made.output
    content = json.loads(made.stdout)
    assert content["optimum"] == json.loads((run / "mixture.json").read_text())["optimum"]
    assert content["verification"] == json.loads((tmp_path / "run" / "verification.json").read_text())
    assert content["verification"]["refinement"]["reason"]


def test_continual_stages_are_verified_too(tmp_path):
    files = write_toy_domains(tmp_path, NAMES, num_documents=120)
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64)
    before = model_fingerprint(model)
    opmix.search(
        model,
        tokenizer,
        {n: str(p) for n, p in files.items()},
        budget=20_000,
        old_mixture={"web": 0.6, "code": 0.4},
        sequence_length=32,
        trainer={"learning_rate": 1e-2, "per_device_train_batch_size": 4},
        probes={"steps": 6, "rank": 4},
        decision={"draws": 30},
        proxies={"eval_sequences": 8},
        cache_dir=str(tmp_path / "cache"),
        out=tmp_path / "run",
    )
    made = verify_run(tmp_path / "run", refine=True, max_rounds=1, model=model, tokenizer=tokenizer)
    assert made.measured.names == ("proposal", "probe old", "probe math", "probe joint")
    assert model_fingerprint(model) == before
    with pytest.raises(ConfigError, match="model object"):
        verify_run(tmp_path / "run")


def test_only_searches_can_be_verified(tmp_path):
    with pytest.raises(StoreError, match=r"manifest\.json"):
        verify_run(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"command": "fit"}))
    with pytest.raises(StoreError, match="'fit'"):
        verify_run(tmp_path)
