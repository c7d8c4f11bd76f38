"""Deciding in the middle of somebody's own Trainer: nothing but the stream changes, and that just where it was promised."""

import json
import tempfile
from types import SimpleNamespace

import pytest
import torch
from consumers import real
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments

import opmix
from opmix.data import MixtureStream, prepare_domain
from opmix.domain import Domain, Source
from opmix.errors import ConfigError, DataError, StoreError
from opmix.mixture_search import callback
from opmix.progress import Silent
from opmix.testing import tiny_adapter, tiny_model, tiny_tokenizer, toy_documents
from opmix.training.factory import stack_rows

LENGTH, BATCH, STEPS = 16, 2, 12
STEP = 2 * BATCH * LENGTH
"""Tokens of an optimizer step: two batches are accumulated."""
SMALL = {
    "probes": {"steps": 2, "rank": 2},
    "proxies": {"eval_sequences": 4},
    "decision": {"draws": 10, "verify": False},
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer([text for name in ("alpha", "beta") for text in toy_documents(name, 30)], vocab_size=300)


@pytest.fixture(scope="module")
def data(toys, tokenizer):
    sources = {n: Source(paths=(str(toys.folder / "data" / f"{n}.jsonl"),)) for n in ("alpha", "beta")}
    return {
        n: prepare_domain(Domain(name=n, train=s, holdout=0.2), tokenizer, cache_dir=toys.folder / "remix")
        for n, s in sources.items()
    }


@pytest.fixture
def make_stream(data, tokenizer):
    def build(steps=STEPS, **settings):
        mixture = {"alpha": 0.75, "beta": 0.25}
        return MixtureStream(
            data, tokenizer, mixture, num_sequences=steps * 2 * BATCH, sequence_length=LENGTH, **settings
        )

    return build


def model():
    return tiny_model("llama", vocab_size=300, num_hidden_layers=1, attention_dropout=0.2, max_position_embeddings=32)


class Seen(TrainerCallback):
    """State of everything at the end of every step, as the Trainer goes on from it."""

    def __init__(self):
        self.states = []

    def on_step_end(self, args, state, control, **kwargs):
        inner = kwargs["optimizer"].optimizer
        moments = [v.clone() for s in inner.state.values() for v in s.values()]
        self.states.append(
            [torch.get_rng_state(), *(v.clone() for v in kwargs["model"].state_dict().values()), *moments]
        )


def train(stream, folder, callbacks=(), resume=None, the_model=None, **arguments):
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        train_sampling_strategy="sequential",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        dataloader_pin_memory=False,
        **{"save_strategy": "no", **arguments},
    )
    trainer = Trainer(model=the_model or model(), args=args, train_dataset=stream, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer


def losses(trainer):
    return [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e]


def weights(trainer):
    return {n: v.clone() for n, v in trainer.model.state_dict().items()}


def assert_same(one, other):
    assert losses(one) == losses(other)
    for name, value in weights(other).items():
        assert torch.equal(weights(one)[name], value), name


@pytest.fixture
def stay(monkeypatch):
    """Every decision keeps the mixture: the search is real, its answer is not taken."""
    real = callback.run_search

    def search(config, **settings):
        return Answer(real(config, **settings).verdict, config.old_mixture)

    monkeypatch.setattr(callback, "run_search", search)


@pytest.fixture
def move(monkeypatch):
    """Every decision moves to much more of beta, without a search."""
    verdict = SimpleNamespace(decision=SimpleNamespace(action="move", reason="because"))
    monkeypatch.setattr(callback, "run_search", lambda config, **_: Answer(verdict, {"alpha": 0.125, "beta": 0.875}))


class Answer:
    """What the callback takes from a search."""

    def __init__(self, verdict, mixture):
        self.verdict, self.mixture = verdict, opmix.Mixture.of(mixture)


def adapted():
    return tiny_adapter(model(), "mine")


def adapted_4bit():
    """QLoRA."""
    real("bitsandbytes")
    with tempfile.TemporaryDirectory() as folder:
        model().save_pretrained(folder)
        packing = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=packing)
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", r=2))


QLORA = pytest.param(adapted_4bit, marks=[pytest.mark.consumer, pytest.mark.filterwarnings("default")], id="qlora")


@pytest.mark.parametrize("made", [pytest.param(adapted, id="lora"), QLORA])
def test_somebody_s_adapters_train_on_as_if_nobody_had_searched(make_stream, tmp_path, stay, made):
    seen, watched = Seen(), Seen()
    alone = train(make_stream(), tmp_path / "a", [seen], the_model=made())
    callback = opmix.RemixCallback(make_stream(), every=5 * STEP, out=tmp_path / "out", **SMALL)
    accompanied = train(callback.stream, tmp_path / "b", [callback, watched], the_model=made())
    assert [s.step for s in callback.switches] == [5, 10]
    for one, other in zip(seen.states, watched.states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert_same(accompanied, alone)


@pytest.mark.parametrize("made", [model, adapted], ids=["full", "lora"])
def test_trl_s_own_trainer_is_re_mixed_twice(make_stream, tmp_path, stay, made):
    trl = pytest.importorskip("trl")

    def trained(folder, *callbacks):
        args = trl.SFTConfig(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            train_sampling_strategy="sequential",
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            dataloader_pin_memory=False,
            max_length=None,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        stream = callbacks[0].stream if callbacks else make_stream()
        trainer = trl.SFTTrainer(
            model=made(),
            args=args,
            train_dataset=stream.as_dataset(),
            callbacks=list(callbacks),
            data_collator=stack_rows,
            processing_class=stream.tokenizer,
        )
        trainer.train()
        return trainer

    callback = opmix.RemixCallback(make_stream(), every=5 * STEP, out=tmp_path / "out", **SMALL)
    accompanied, alone = trained(tmp_path / "b", callback), trained(tmp_path / "a")
    assert [s.step for s in callback.switches] == [5, 10]
    assert_same(accompanied, alone)


@pytest.mark.parametrize(
    "arguments",
    [{}, pytest.param({"gradient_checkpointing": True, "bf16": True}, marks=pytest.mark.slow)],
    ids=["plain", "bf16"],
)
def test_a_decision_that_keeps_leaves_no_trace(make_stream, tmp_path, stay, arguments):
    seen, watched = Seen(), Seen()
    alone = train(make_stream(), tmp_path / "a", [seen], **arguments)
    callback = opmix.RemixCallback(make_stream(), every=5 * STEP, out=tmp_path / "out", **SMALL)
    accompanied = train(callback.stream, tmp_path / "b", [callback, watched], **arguments)
    assert [s.step for s in callback.switches] == [5, 10]
    assert (tmp_path / "out" / "step-5" / "report.html").exists()
    for step, (one, other) in enumerate(zip(seen.states, watched.states, strict=True), 1):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), step
    assert_same(accompanied, alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_switch_takes_effect_at_the_promised_sequence(make_stream, tmp_path, move, workers):
    """Trained rows are recorded by the model's inputs, and are those of the stream as it is after the run."""
    stream, fed = make_stream(), []

    the_model = model()
    the_model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].clone()) if recording else None, with_kwargs=True
    )
    recording = True
    callback = opmix.RemixCallback(stream, at=[4 * STEP], out=tmp_path / "out", **SMALL)
    real = callback.on_step_end

    def without_recording(*args, **kwargs):
        nonlocal recording
        recording = False
        real(*args, **kwargs)
        recording = True

    callback.on_step_end = without_recording
    train(stream, tmp_path / "run", [callback], the_model=the_model, dataloader_num_workers=workers)
    (switch,) = callback.switches
    rows = 2 * BATCH
    assert switch.step == 4
    assert switch.index == (20 if not workers else 28)  # accelerate holds a batch; two workers hold two each
    found = torch.cat(fed)
    assert torch.equal(found, torch.stack([stream[i]["input_ids"] for i in range(STEPS * rows)]))
    before, after = stream.plan[: switch.index].counts(), stream.plan[switch.index :].counts()
    assert before["alpha"] == 3 * before["beta"]
    assert after["beta"] > 3 * after["alpha"]
    kept = json.loads((tmp_path / "out" / "switches.json").read_text())["switches"]
    assert kept == [vars(switch)]


def test_resumed_from_a_checkpoint_it_goes_on_with_the_same_stream(make_stream, tmp_path, move):
    settings = {**SMALL, "at": [4 * STEP, 8 * STEP], "out": tmp_path / "out"}
    whole = opmix.RemixCallback(make_stream(), **settings)
    first = train(whole.stream, tmp_path / "run", [whole], save_steps=6, save_strategy="steps")
    again = opmix.RemixCallback(make_stream(), **settings)
    resumed = train(again.stream, tmp_path / "run", [again], resume=tmp_path / "run" / "checkpoint-6")
    assert again.switches == whole.switches
    assert len(again.results) == 1  # the decision at step 8; that at step 4 was taken over
    assert again.stream.plan.fingerprint == whole.stream.plan.fingerprint
    assert_same(resumed, first)


def test_damaged_decisions_are_named(make_stream, tmp_path, move):
    settings = {**SMALL, "at": [4 * STEP], "out": tmp_path / "out"}
    whole = opmix.RemixCallback(make_stream(), **settings)
    train(whole.stream, tmp_path / "run", [whole], save_steps=6, save_strategy="steps")
    (tmp_path / "out" / "switches.json").write_text('{"switches": [{"st')
    again = opmix.RemixCallback(make_stream(), **settings)
    with pytest.raises(StoreError, match=r"switches\.json: damaged"):
        train(again.stream, tmp_path / "run", [again], resume=tmp_path / "run" / "checkpoint-6")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"expected either at=\[tokens, ...\] or every=tokens"),
        ({"at": [1], "every": 1}, r"expected either at=\[tokens, ...\] or every=tokens"),
        ({"every": 0}, r"every: Input should be greater than 0 \(got 0\)"),
        ({"at": [100, -5]}, r"at\.1: Input should be greater than 0 \(got -5\)"),
        ({"at": [100], "probes": {"stepz": 1}}, "probes.stepz: unknown key; did you mean 'steps'"),
        ({"at": [100], "new_domains": ["gama"]}, "new_domains.gama: unknown domain"),
    ],
)
def test_settings_that_cannot_hold(make_stream, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        opmix.RemixCallback(make_stream(), out=tmp_path, **settings)


@pytest.mark.slow
def test_targets_decide_what_the_stream_goes_on_with(make_stream, toys, tmp_path):
    dev = tmp_path / "dev.jsonl"
    rows = [{"text": text} for text in toy_documents("beta", 40, seed=7)]
    dev.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**SMALL, "targets": {"manual": str(dev)}, "cache_dir": str(tmp_path / "cache")}
    callback_ = opmix.RemixCallback(make_stream(), at=[4 * STEP], out=tmp_path / "out", **settings)
    train(callback_.stream, tmp_path / "run", [callback_])
    (result,) = callback_.results
    assert result.table.metrics == ("alpha", "beta", "manual")
    assert result.verdict.settings.omega.tolist() == [0, 0, 1]
    assert "manual" not in callback_.switches[0].mixture
    with pytest.raises(DataError, match=r"target 'manual': .*nowhere\.jsonl"):
        opmix.RemixCallback(make_stream(), at=[STEP], out=tmp_path, targets={"manual": "nowhere.jsonl"})


def test_a_target_whose_text_is_in_the_stream_is_named_before_training(make_stream, toys, tmp_path):
    dev = tmp_path / "dev.jsonl"
    dev.write_bytes((toys.folder / "data" / "alpha.jsonl").read_bytes())
    seen, notes = Silent(), []
    seen.note = notes.append
    settings = {**SMALL, "targets": {"manual": str(dev)}, "cache_dir": str(tmp_path / "cache"), "progress": seen}
    opmix.RemixCallback(make_stream(), at=[4 * STEP], out=tmp_path / "out", **settings)
    (told,) = [note for note in notes if "manual" in note]
    assert "of its text is in what domain 'alpha' trains on" in told


def test_trainers_that_cannot_be_used(make_stream, tmp_path, monkeypatch):
    def callback(stream):
        return opmix.RemixCallback(stream, at=[4 * STEP], out=tmp_path / "out", **SMALL)

    stream = make_stream(steps=STEPS + 1)
    with pytest.raises(ConfigError, match="the stream has 52 sequences; expected 48: 12 steps of 4"):
        train(stream, tmp_path, [callback(stream)])
    stream = make_stream()
    with pytest.raises(ConfigError, match="the stream is a Dataset; expected a MixtureStream"):
        callback(stream.as_dataset())
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=STEPS, use_cpu=True, report_to="none")
    with pytest.raises(ConfigError, match="RemixCallback needs 'sequential'"):
        Trainer(model=model(), args=args, train_dataset=stream, callbacks=[callback(stream)]).train()
    state = type("State", (), {"max_steps": STEPS, "global_step": 0})
    monkeypatch.setenv("WORLD_SIZE", "2")
    ordered = TrainingArguments.__new__(TrainingArguments)
    ordered.train_sampling_strategy = "sequential"
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2; RemixCallback drives one process"):
        callback(stream).on_train_begin(ordered, state, None, model=model())


def test_a_stream_that_was_read_too_far_is_said_so(make_stream, tmp_path, move):
    stream = make_stream()
    _ = stream[40]
    with pytest.raises(DataError, match="the mixture cannot change at sequence 20: 41 have been handed out"):
        train(stream, tmp_path, [opmix.RemixCallback(stream, at=[4 * STEP], out=tmp_path / "out", **SMALL)])


def test_too_late_to_decide_about_anything(make_stream, tmp_path, move):
    stream = make_stream()
    callback = opmix.RemixCallback(stream, at=[11 * STEP, 99 * STEP], out=tmp_path / "out", **SMALL)
    train(stream, tmp_path / "run", [callback])
    assert callback.switches == []
