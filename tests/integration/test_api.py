"""The whole path on a two-layer model: search, resume, give the model back, refuse bad input."""

import json
import shutil
import socket

import numpy as np
import pytest
import torch
import yaml
from consumers import real
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

import opmix
from opmix.config import load_config
from opmix.errors import AdapterError, ConfigError, DataError, InfeasibleError, ModelError, StoreError, TrainingError
from opmix.models.layers import model_fingerprint
from opmix.runs.store import RunStore
from opmix.testing import tiny_adapter, tiny_model, tiny_tokenizer, write_toy_domains
from opmix.training.factory import default_trainer

NAMES = ["web", "code", "math"]
TRAINER = {"learning_rate": 1e-2, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    paths = write_toy_domains(folder, NAMES, num_documents=120, seed=0)
    tokenizer = tiny_tokenizer()
    return folder, {name: str(path) for name, path in dict(paths).items()}, tokenizer


def settings(toys, **changes):
    folder, paths, tokenizer = toys
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64)
    base = {
        "domains": paths,
        "budget": 20_000,
        "old_mixture": {"web": 0.6, "code": 0.4},
        "sequence_length": 32,
        "trainer": TRAINER,
        "probes": {"steps": 6, "rank": 4},
        "proxies": {"eval_sequences": 8},
        "decision": {"draws": 30},
        "cache_dir": str(folder / "cache"),
    }
    return {"model": model, "tokenizer": tokenizer, **base, **changes}


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory):
    """A search, and its folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return opmix.search(**settings(toys), out=folder), folder


def test_search_gives_a_mixture_and_the_model_back(toys, tmp_path):
    chosen = settings(toys)
    model = chosen["model"].train()
    model.model.embed_tokens.weight.requires_grad_(False)
    before, flags = model_fingerprint(model), [p.requires_grad for p in model.parameters()]
    rng = torch.random.get_rng_state()
    result = opmix.search(**chosen, out=tmp_path / "run")
    assert sum(result.mixture.values()) == pytest.approx(1)
    assert set(result.mixture) == set(NAMES)
    if result.verdict.decision.action == "move":
        assert result.mixture["web"] / result.mixture["code"] == pytest.approx(1.5, rel=1e-4)
    assert all(0 <= low <= high <= 1 for low, high in result.interval.values())
    assert model_fingerprint(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), rng)
    content = json.loads((tmp_path / "run" / "mixture.json").read_text())
    assert content["mixture"] == pytest.approx(dict(result.mixture))
    assert content["check"]["available"]
    assert content["cost"]["tokens"]["probes"] == 3 * 6 * 4 * 32
    assert {"proposal", "current", "uniform", "size", "prior"} == {a["name"] for a in content["alternatives"]}
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    assert not (tmp_path / "run" / "lock").exists()


def test_what_a_search_finds_is_in_the_trackers_that_report_to_names(toys, tmp_path, monkeypatch):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    chosen = settings(toys, trainer={**TRAINER, "report_to": "tensorboard"})
    result = opmix.search(**chosen, out=tmp_path / "run")
    found = accumulators.EventAccumulator(str(tmp_path / "run" / "trackers" / "opmix"))
    found.Reload()
    assert len(found.Scalars("loss/web")) == len(result.table.points)
    monkeypatch.setattr(
        "opmix.mixture_search.search.log_decision", lambda *a, **k: (_ for _ in ()).throw(OSError("down"))
    )
    assert opmix.search(**chosen, out=tmp_path / "run").json() == result.json()  # a tracker that is down loses nothing


def test_resuming_repeats_nothing_and_gives_the_same_answer(toys, finished, tmp_path, monkeypatch):
    first, folder = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    from opmix.probes import tasks

    trained = []
    real = tasks.run_training
    monkeypatch.setattr(tasks, "run_training", lambda *a: trained.append(1) or real(*a))
    again = opmix.search(**settings(toys), out=tmp_path)
    assert trained == []
    assert again.json()["optimum"] == first.json()["optimum"]
    # A damaged probe is trained again and a damaged table made again, bit for bit; a changed input makes all of them stale.
    adapter = next((tmp_path / "probes").glob("01-*")) / "adapter_model.safetensors"
    old = adapter.read_bytes()
    adapter.write_bytes(old[: len(old) // 2])
    table = tmp_path / "tables" / "sequences-proxies.npz"
    table.write_bytes(table.read_bytes()[:300])
    mended = opmix.search(**settings(toys), out=tmp_path)
    assert trained == [1]
    assert adapter.read_bytes() == old
    assert mended.json()["optimum"] == first.json()["optimum"]
    opmix.search(**settings(toys, probes={"steps": 7, "rank": 4, "adaptive": False}), out=tmp_path)
    assert len(trained) == 4


def test_an_interrupted_search_keeps_its_finished_probes(toys, finished, tmp_path, monkeypatch):
    from opmix.probes import tasks

    real, calls = tasks.run_training, []

    def interrupt(*a):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*a)

    monkeypatch.setattr(tasks, "run_training", interrupt)
    chosen = settings(toys)
    before = model_fingerprint(chosen["model"])
    with pytest.raises(KeyboardInterrupt):
        opmix.search(**chosen, out=tmp_path / "a")
    assert model_fingerprint(chosen["model"]) == before
    resumed = opmix.search(**chosen, out=tmp_path / "a")
    assert len(calls) == 4  # one done, one cut off, two more
    assert resumed.json()["optimum"] == finished[0].json()["optimum"]


def test_adapters_are_ordinary_peft_adapters(toys, finished):
    from peft import PeftModel

    result, folder = finished
    base = settings(toys)["model"]
    loaded = PeftModel.from_pretrained(base, str(next((folder / "probes").glob("00-*"))))
    ids = torch.randint(2, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    with loaded.disable_adapter(), torch.no_grad():
        plain = loaded(input_ids=ids).logits
    with torch.no_grad():
        assert not torch.allclose(loaded(input_ids=ids).logits, plain)
    assert result.table.kinds.count("probe") == 3


def test_rebalancing_and_constraints(toys):
    result = opmix.search(
        **settings(
            toys,
            old_mixture=None,
            solve={"ceilings": {"web": 0.2}, "kl": 0.01},
            proxies={"eval_sequences": 4, "count": 10},
            law="log_linear",
        )
    )
    assert result.mixture["web"] <= 0.2 + 1e-6
    assert result.table.weights.shape == (4 + 1 + 10, 4)


def test_a_move_between_old_domains_is_held_against_a_probe_trained_on_it(toys, tmp_path, monkeypatch):
    eager = {"draws": 30, "confidence": 1e-6}
    opmix.search(**settings(toys, old_mixture=None, decision=eager), out=tmp_path)
    decision = json.loads((tmp_path / "mixture.json").read_text())["decision"]
    assert decision["direct_gain"] is not None
    assert decision["direct_error"] > 0
    assert (tmp_path / "steps" / "verification.json").exists()
    from opmix.probes import tasks

    monkeypatch.setattr(tasks, "run_training", lambda *a: pytest.fail("a probe was trained again"))
    assert opmix.search(**settings(toys, old_mixture=None, decision=eager), out=tmp_path).json()["decision"] == decision


def test_modules_trained_in_full_are_interpolated_too(toys):
    result = opmix.search(**settings(toys, probes={"steps": 3, "rank": 2, "modules_to_save": ["embed_tokens"]}))
    assert np.isfinite(result.table.losses).all()


def test_the_trainer_can_be_replaced(toys):
    from opmix.training.factory import default_trainer

    seen = []

    def factory(spec):
        seen.append(spec.steps)
        return default_trainer(spec)

    opmix.search(**settings(toys), make_trainer=factory)
    assert seen == [6, 6, 6]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budgt": 3}, ConfigError, "did you mean 'budget'"),
        ({"trainer": {"learning_rat": 1}}, ConfigError, "did you mean 'learning_rate'"),
        ({"trainer": {"max_steps": 5}}, ConfigError, "the token budget decides"),
        ({"sequence_length": 128}, ConfigError, "at most 64"),
        ({"solve": {"ceilings": dict.fromkeys(NAMES, 0.2)}}, InfeasibleError, "ceiling: code <= 0.2"),
        ({"solve": {"max_epochs": 0.01}, "budget": 10**7}, InfeasibleError, "tokens: math has"),
        ({"domains": {"web": "nowhere.jsonl", "code": "x.jsonl"}, "old_mixture": None}, DataError, "nowhere.jsonl"),
        ({"old_mixture": {"web": 0.6, "cod": 0.4}}, ConfigError, "did you mean 'code'"),
        ({"tokenizer": None}, ConfigError, "tokenizer: missing"),
        ({"solve": {"prior": "current"}}, ConfigError, "no mass on the new domain 'math'"),
        (
            {"proxies": {"count": 1}, "law": "log_linear", "old_mixture": None},
            ConfigError,
            "expected at least 5 points",
        ),
        ({"model": "./no/such/checkpoint", "tokenizer": None}, ModelError, "no/such/checkpoint"),
    ],
)
def test_bad_input_is_refused_before_any_training(toys, monkeypatch, changes, error, message):
    from opmix.probes import tasks

    monkeypatch.setattr(tasks, "run_training", lambda *a: pytest.fail("trained before checking"))
    with pytest.raises(error, match=message):
        opmix.search(**settings(toys, **changes))


def test_an_empty_domain_is_named(toys, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    _, paths, _ = toys
    with pytest.raises(DataError, match="'math'"):
        opmix.search(**settings(toys, domains={**paths, "math": str(tmp_path / "empty.jsonl")}))


def test_a_tokenizer_that_is_too_large_for_the_model_is_refused(toys):
    _, _, tokenizer = toys
    small = tiny_model(vocab_size=len(tokenizer) - 5, max_position_embeddings=64)
    with pytest.raises(ModelError, match="tokenizer"):
        opmix.search(**settings(toys, model=small))


def test_a_diverging_probe_stops_the_search(toys):
    class Broken(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.inf)

    def breaking(spec):
        trainer = default_trainer(spec)
        trainer.add_callback(Broken())
        return trainer

    with pytest.raises(TrainingError, match=r"learning.rate"):
        opmix.search(**settings(toys), make_trainer=breaking)


def test_a_run_folder_is_held_by_one_process(toys, tmp_path):
    with RunStore(tmp_path):
        (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))
        with pytest.raises(StoreError, match="held by process 1 "):
            opmix.search(**settings(toys), out=tmp_path)


def test_yaml_and_overrides(toys, tmp_path):
    _, paths, _ = toys
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump({"model": "m", "domains": paths, "budget": {"tokens": "2e6"}}))
    config = load_config(file, ["probes.steps=7", "model.dtype=bfloat16", "solve.kl=0.1"])
    assert (config.probes.steps, config.model.dtype, config.solve.kl, config.budget.tokens) == (
        7,
        "bfloat16",
        0.1,
        2_000_000,
    )
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        load_config(file, ["probes.stepz=7"])
    with pytest.raises(ConfigError, match=r"key\.path=value"):
        load_config(file, ["probes"])


def test_own_adapters_are_part_of_the_base_and_come_back_bit_for_bit(toys):
    chosen = settings(toys)
    merged = tiny_adapter(settings(toys)["model"], "mine").merge_and_unload()
    expected = opmix.search(**{**chosen, "model": merged})
    mine = tiny_adapter(chosen["model"], "mine").train()
    before = {name: p.clone() for name, p in mine.named_parameters()}
    flags, ids = [p.requires_grad for p in mine.parameters()], torch.arange(2, 34)[None]
    logits = mine.eval()(ids).logits
    found = opmix.search(**{**chosen, "model": mine})
    assert found.json() == expected.json()
    assert [name for name, _ in mine.named_parameters()] == list(before)
    assert all(torch.equal(p, before[name]) for name, p in mine.named_parameters())
    assert [p.requires_grad for p in mine.parameters()] == flags
    assert torch.equal(mine(ids).logits, logits)


@pytest.mark.consumer
@pytest.mark.filterwarnings("default")
def test_a_base_of_four_bits_is_searched_in_memory_and_from_disk_and_not_touched(toys, tmp_path):
    real("bitsandbytes")
    chosen = settings(toys, probes={"steps": 2, "rank": 2}, decision={"draws": 10, "verify": False})
    chosen["model"].save_pretrained(tmp_path / "plain")
    packing = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=packing)
    base.save_pretrained(tmp_path / "packed")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    found = opmix.search(**{**chosen, "model": base})
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    again = opmix.search(**{**chosen, "model": str(tmp_path / "packed")})
    assert again.json()["optimum"] == found.json()["optimum"]
    with pytest.raises(AdapterError, match="its weights are quantised"):
        opmix.search(**{**chosen, "model": base, "proxies": {**chosen["proxies"], "backend": "merge"}})
