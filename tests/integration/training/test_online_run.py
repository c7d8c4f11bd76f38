"""A run whose mixture is decided as it goes: killed anywhere it ends in the same bytes, and what it tells is what is so."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from rounding import assert_same_up_to_rounding
from transformers import TrainerCallback

from opmix.data import ChatRows, MixtureDataset, PackedSequences, plan_mixture, prepare_domain
from opmix.domain import ChatOptions, Domain, Source
from opmix.errors import ConfigError, DataError, StoreError
from opmix.mixing.mixture import Mixture
from opmix.models.load import model_shape
from opmix.protocols.online_mixer import MixerSegment
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats, write_toy_domains
from opmix.training.checkpoints import Checkpoints
from opmix.training.distillation import SelfDistillation
from opmix.training.full import planned_run, train_segment
from opmix.training.objectives import CAUSAL_LM, SFT, Usage
from opmix.training.online import MIXER_FILE, OnlineRun, OnlineRunState, train_online
from opmix.training.plan import plan_training, training_cost
from opmix.training.segments import SegmentRows, lowered
from opmix.training.settings import DistillationSettings
from opmix.training.signals import SignalSources, gradient, inner

LENGTH, STEPS, NAMES = 24, 10, ("alpha", "beta", "gamma")
ARGUMENTS = {
    "learning_rate": 5e-3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1,
    "lr_scheduler_type": "linear",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_chat_tokenizer()


@pytest.fixture(scope="module")
def splits(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("texts")
    files = write_toy_domains(folder, NAMES, 120) | write_toy_chats(folder, {"terse": 1, "wordy": 3}, 120)
    return {
        name: prepare_domain(Domain(name=name, train=Source(paths=(str(path),))), tokenizer, cache_dir=folder / "cache")
        for name, path in files.items()
    }


@pytest.fixture(scope="module")
def texts(splits):
    return {n: PackedSequences(splits[n].train, LENGTH) for n in NAMES}


@pytest.fixture(scope="module")
def chats(splits):
    options = ChatOptions(packing=False, truncate="left")
    made = {n: ChatRows(splits[n].train, 96, options) for n in ("terse", "wordy")}
    return {**made, "alpha": PackedSequences(splits["alpha"].train, 96)}


@pytest.fixture
def model(tokenizer):
    return fresh(tokenizer)


def fresh(tokenizer, seed=0):
    return tiny_model("llama", vocab_size=len(tokenizer), seed=seed, attention_dropout=0.1)


class Everything:
    """Wants every signal, and lets each of them move its mixture."""

    signals = frozenset({"train_loss", "held_out", "gradients", "excess"})

    def __init__(self, every=3):
        self.every, self.seen = every, []

    def init(self, names):
        return {"log": [], "weights": [1 / len(names)] * len(names)}, MixerSegment(Mixture.uniform(names), self.every)

    def update(self, state, seen):
        self.seen.append(seen)
        parts = [seen.train_loss, seen.held_out, seen.gradients.sum(axis=1), seen.gradient_norms, 10 * seen.excess]
        scores = sum(np.nan_to_num(part) for part in parts)
        raw = np.exp(scores - scores.max())
        weights = raw / raw.sum()
        state = {"log": [*state["log"], [p.tolist() for p in parts]], "weights": weights.tolist()}
        return state, MixerSegment(Mixture(seen.mixture.names, 0.5 * weights + 0.5 / len(weights)), self.every)


class Fixed:
    """Never changes its mind."""

    def __init__(self, mixture, every=3, signals=()):
        self.mixture, self.every, self.signals = mixture, every, frozenset(signals)

    def update(self, state, seen):
        return state, MixerSegment(self.mixture, self.every)


def evaluate_on(rows):
    def evaluate(model):
        torch.rand(3)  # draws, as an evaluation may
        np.random.rand(3)  # noqa: NPY002
        with torch.no_grad():
            losses = []
            for r in rows.values():
                ids = torch.as_tensor(r.batch(np.arange(4)))
                losses.append(float(model(input_ids=ids, labels=ids).loss))
        return np.array(losses)

    return evaluate


def run_of(mixer, start, rows, tokenizer, **changes):
    senses = SignalSources(
        evaluate=evaluate_on(rows), evaluate_tokens=100, held_out=rows, reference=fresh(tokenizer, seed=9).train(),
        gradient_rows=3,
    )  # fmt: skip
    settings = {"steps": STEPS, "arguments": ARGUMENTS, "seed": 3, "senses": senses, **changes}
    return OnlineRun(mixer=mixer, start=start, rows=rows, **settings)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class KilledError(Exception):
    """What stops a run in the middle."""


class KillAt(TrainerCallback):
    def __init__(self, step, moment):
        self.step, self.moment = step, moment

    def on_step_begin(self, args, state, control, **kwargs):
        if self.moment == "begin" and state.global_step == self.step:
            raise KilledError

    def on_step_end(self, args, state, control, **kwargs):
        if self.moment == "end" and state.global_step == self.step:
            raise KilledError

    def on_save(self, args, state, control, **kwargs):
        if self.moment == "save" and state.global_step == self.step:
            raise KilledError


@pytest.fixture(scope="module")
def unbroken(texts, tokenizer, tmp_path_factory):
    mixer, usage, model = Everything(), Usage(), fresh(tokenizer)
    folder = tmp_path_factory.mktemp("unbroken")
    result = train_online(
        model, run_of(mixer, mixer.init(NAMES), texts, tokenizer), folder=folder, usage=usage,
        checkpoints=Checkpoints(key="k", save_every=2),
    )  # fmt: skip
    return result, usage, weights(model), mixer.seen


def test_segments_follow_the_mixer_and_end_with_the_run(unbroken):
    result, _, _, seen = unbroken
    assert [s.steps for s in result.segments] == [3, 3, 3, 1]
    assert [o.step for o in seen] == [3, 6, 9]
    assert len(result.state["log"]) == 3
    assert result.segments[0].mixture != result.segments[1].mixture
    for before, after in pairwise(seen):
        drawn = after.tokens - before.tokens
        assert drawn.sum() == 3 * 4 * LENGTH
        assert np.abs(drawn / LENGTH - after.mixture.weights * 12).max() < 1
    assert result.plan.steps == STEPS
    assert result.plan.supervised_tokens == STEPS * 4 * LENGTH == len(result.plan.plan) * LENGTH
    assert [o.learning_rate for o in seen] == pytest.approx([0.7, 0.4, 0.1])


@pytest.mark.parametrize(
    ("step", "moment"), [(1, "end"), (3, "end"), (4, "begin"), (6, "save"), (6, "begin"), (9, "end")]
)
def test_killed_and_resumed_it_is_the_unbroken_run(unbroken, texts, tokenizer, tmp_path, step, moment):
    whole, usage, wanted, _ = unbroken
    mixer = Everything()
    run, kept = run_of(mixer, mixer.init(NAMES), texts, tokenizer), Checkpoints(key="k", save_every=2)
    with pytest.raises(KilledError):
        train_online(fresh(tokenizer), run, folder=tmp_path, checkpoints=kept, callbacks=[KillAt(step, moment)])
    again, model = Usage(), fresh(tokenizer, seed=5 if step > 1 else 0)
    resumed = train_online(model, run, folder=tmp_path, checkpoints=kept, usage=again)
    assert same(weights(model), wanted)
    assert resumed.segments == whole.segments
    assert json.dumps(resumed.state) == json.dumps(whole.state)
    assert resumed.plan.plan.fingerprint == whole.plan.plan.fingerprint
    assert again == usage
    assert (tmp_path / f"checkpoint-{STEPS}" / MIXER_FILE).is_file()


def test_a_finished_run_is_not_trained_again(texts, tokenizer, tmp_path):
    watched = {"alpha": MixtureDataset(texts, plan_mixture(Mixture.of({"alpha": 1.0}), 4, {"alpha": 4}, seed=0))}
    mixer, kept = Everything(), Checkpoints(key="k", save_every=5, evaluate_every=5, held_out=watched)
    run, model = run_of(mixer, mixer.init(NAMES), texts, tokenizer), fresh(tokenizer)
    first = train_online(model, run, folder=tmp_path, checkpoints=kept)
    assert [e["step"] for e in first.trainer.state.log_history if "eval_alpha_loss" in e] == [5, 10]
    other = fresh(tokenizer, seed=4)
    again = train_online(other, run, folder=tmp_path, checkpoints=kept, callbacks=[KillAt(5, "begin")])
    assert same(weights(other), weights(model))
    assert (again.segments, again.state) == (first.segments, first.state)


def test_without_checkpoints_the_same_weights_and_nothing_written(unbroken, texts, tokenizer, tmp_path):
    mixer, model, told = Everything(), fresh(tokenizer), []
    result = train_online(
        model,
        run_of(mixer, mixer.init(NAMES), texts, tokenizer),
        folder=tmp_path / "none",
        report=lambda *n: told.append(n),
    )
    assert same(weights(model), unbroken[2])
    assert result.segments == unbroken[0].segments
    assert told[-1] == (STEPS, STEPS)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("signals", [(), ("train_loss", "held_out", "gradients", "excess")], ids=["deaf", "everything"])
@pytest.mark.parametrize("shares", [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.3, 0.0)])
def test_a_mixture_that_never_changes_is_the_plain_run(texts, tokenizer, tmp_path, shares, signals):
    mixture = Mixture(NAMES, shares)
    plan = plan_training(texts, mixture, steps=STEPS, arguments=ARGUMENTS, seed=3)
    plain = fresh(tokenizer)
    train_segment(planned_run(plain, plan, folder=tmp_path / "plain", seed=3), Checkpoints(key="p"))
    online = fresh(tokenizer)
    run = run_of(Fixed(mixture, signals=signals), ({}, MixerSegment(mixture, 3)), texts, tokenizer)
    result = train_online(online, run, folder=tmp_path / "online", checkpoints=Checkpoints(key="o"))
    assert result.plan.plan.fingerprint == plan.plan.fingerprint
    assert same(weights(online), weights(plain))
    assert not same(weights(online), weights(fresh(tokenizer)))


def test_mixed_precision_checkpointing_and_workers_change_nothing_of_that(texts, tokenizer, tmp_path):
    mixture = Mixture(NAMES, [0.5, 0.3, 0.2])
    arguments = {**ARGUMENTS, "bf16": True, "gradient_checkpointing": True, "dataloader_num_workers": 1}
    plan = plan_training(texts, mixture, steps=STEPS, arguments=arguments, seed=3)
    plain, online = fresh(tokenizer), fresh(tokenizer)
    train_segment(planned_run(plain, plan, folder=tmp_path / "plain", seed=3), Checkpoints(key="p"))
    mixer = Fixed(mixture, signals=Everything.signals)
    run = run_of(mixer, ({}, MixerSegment(mixture, 3)), texts, tokenizer, arguments=arguments)
    train_online(online, run, folder=tmp_path / "online")
    assert same(weights(online), weights(plain))


def test_conversations_are_matched_segment_by_segment_and_resume(chats, tokenizer, tmp_path):
    names = tuple(chats)
    arguments = {**ARGUMENTS, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    ends, results = [], []
    for kill in (None, 7):
        mixer = Everything()
        run = run_of(mixer, mixer.init(names), chats, tokenizer, objective=SFT, arguments=arguments)
        folder, kept = tmp_path / str(kill), Checkpoints(key="k", save_every=2)
        if kill:
            with pytest.raises(KilledError):
                train_online(fresh(tokenizer), run, folder=folder, checkpoints=kept, callbacks=[KillAt(kill, "end")])
        model = fresh(tokenizer)
        results.append(train_online(model, run, folder=folder, checkpoints=kept))
        ends.append(weights(model))
    assert same(*ends)
    whole, plan = results[0], results[0].plan
    assert results[1].segments == whole.segments
    assert len(plan.dataset) == STEPS * plan.accumulation
    wanted = sum(s.steps * s.mixture.weights for s in whole.segments) / STEPS
    assert np.array(list(plan.shares.values())) == pytest.approx(wanted, abs=0.1)


def test_training_losses_are_those_of_the_rows(texts, tokenizer, tmp_path, model):
    mixture = Mixture(NAMES, [0.5, 0.5, 0.0])
    mixer = Everything(every=1)
    model.config.attention_dropout = 0.0
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    arguments = {
        **ARGUMENTS,
        "learning_rate": 1e-12,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    }
    run = run_of(
        mixer, ({"log": [], "weights": []}, MixerSegment(mixture, 1)), texts, tokenizer, steps=2, arguments=arguments
    )
    before = fresh(tokenizer)
    usage = Usage()
    result = train_online(model, run, folder=tmp_path, usage=usage)
    (seen,) = mixer.seen
    plan, reference = result.plan.plan, run.senses.reference
    for k in range(2):

        @torch.no_grad()
        def told(k=k):
            losses = []
            for index in np.flatnonzero(plan.domain[:4] == k):
                ids = torch.as_tensor(texts[NAMES[k]][int(plan.row[index])])[None]
                logits = [m.eval()(input_ids=ids).logits[0, :-1] for m in (before, reference)]
                losses.append([torch.nn.functional.cross_entropy(x, ids[0, 1:], reduction="none") for x in logits])
            own, other = (torch.cat(x) for x in zip(*losses, strict=True))
            return torch.stack([own.mean(), (own - other).clamp(min=0).mean()])

        assert_same_up_to_rounding(np.array([seen.train_loss[k], seen.excess[k]]), told, before)
        assert 0 < seen.excess[k] < seen.train_loss[k]
    assert np.isnan(seen.train_loss[2])
    assert np.isnan(seen.excess[2])
    shape, read = model_shape(model), 2 * 4 * LENGTH  # the reference reads every training row
    gradients = 6 * 3 * LENGTH
    assert usage.extra["tokens"] == read + 100 + gradients
    flops = (read + 100) * shape.forward(LENGTH) + gradients * shape.train(LENGTH)
    assert usage.extra["flops"] == pytest.approx(flops)
    assert training_cost(result.plan, usage, CAUSAL_LM, shape, LENGTH).row_tokens == read


def test_gradients_predict_how_a_small_step_moves_a_loss(texts, model):
    def batch(name, rows):
        ids = torch.as_tensor(np.stack([texts[name][i] for i in rows]))
        return {"input_ids": ids, "labels": ids}

    def loss(name):
        with torch.no_grad():
            return float(model(**batch(name, [5, 6])).loss)

    own, other = gradient(model, [batch("alpha", [0, 1])]), gradient(model, [batch("beta", [5, 6])])
    two = gradient(model, [batch("alpha", [0]), batch("alpha", [1])])
    assert_same_up_to_rounding(two, lambda: gradient(model, [batch("alpha", [0, 1])]), model)
    before, step = loss("beta"), 1e-3
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), own, strict=True):
            parameter -= step * part
    assert (before - loss("beta")) / step == pytest.approx(inner(own, other), rel=0.05)
    assert all(p.grad is None for p in model.parameters())


def test_domains_are_lowered_to_what_is_left_of_them(texts, tokenizer, tmp_path):
    wanted = Mixture(NAMES, [0.8, 0.1, 0.1])
    limit = 9 / len(texts["alpha"])
    run = run_of(Fixed(wanted), ({}, MixerSegment(wanted, 5)), texts, tokenizer, max_epochs={"alpha": limit})
    result = train_online(fresh(tokenizer), run, folder=tmp_path)
    assert result.plan.plan.counts()["alpha"] <= 9
    assert result.segments[0].mixture["alpha"] == pytest.approx(9 / 20)
    assert result.segments[0].mixture["beta"] == pytest.approx(11 / 40)
    assert result.segments[1].mixture["alpha"] == pytest.approx(0, abs=0.051)
    assert lowered(np.array([1.0, 0.0, 0.0]), np.array([0.4, 1.0, 0.1])).tolist() == pytest.approx([0.4, 0.5, 0.1])
    none = run_of(Fixed(wanted), ({}, MixerSegment(wanted, 5)), texts, tokenizer, max_epochs=dict.fromkeys(NAMES, 0.01))
    with pytest.raises(DataError, match="raise max_epochs"):
        train_online(fresh(tokenizer), none, folder=tmp_path)


def test_earlier_stages_are_not_read_again(texts, tokenizer, tmp_path):
    mixture = Mixture.uniform(NAMES)
    rows = SegmentRows(texts, NAMES, mixture, steps=4, arguments=ARGUMENTS, seed=3, objective=CAUSAL_LM)
    rows.add(MixerSegment(mixture, 4))
    read = rows.whole.plan
    later = replace(rows.whole, plan=read[len(read) :])
    run = run_of(Fixed(mixture), ({}, MixerSegment(mixture, 4)), texts, tokenizer, previous=later, steps=4)
    result = train_online(fresh(tokenizer), run, folder=tmp_path)
    first, second = ({(int(d), int(r)) for d, r in zip(p.domain, p.row, strict=True)} for p in (read, result.plan.plan))
    assert len(first) == len(second) == 16
    assert not first & second
    with pytest.raises(ConfigError, match=r"a plan of 4 steps over .* expected 0 steps"):
        train_online(fresh(tokenizer), replace(run, previous=rows.whole), folder=tmp_path)
    with pytest.raises(ConfigError, match="without `previous_key`"):
        train_online(fresh(tokenizer), replace(run, previous=rows.whole, begin_at=4), folder=tmp_path)


@pytest.mark.parametrize("kind", ["texts", "chats"])
def test_a_run_goes_on_after_a_prefix(request, tokenizer, tmp_path, kind):
    rows, objective = request.getfixturevalue(kind), CAUSAL_LM if kind == "texts" else SFT
    names, mixture = tuple(rows), Mixture.uniform(tuple(rows))
    first = plan_training(rows, mixture, steps=4, arguments=ARGUMENTS, seed=3, objective=objective)
    whole = plan_training(rows, mixture, steps=6, arguments=ARGUMENTS, seed=3, objective=objective, previous=first)
    plain = fresh(tokenizer)
    spec = replace(planned_run(plain, whole, folder=tmp_path / "plain", seed=3), steps=STEPS)
    train_segment(replace(spec, stop_at=4), Checkpoints(key="prefix"))
    shutil.copytree(tmp_path / "plain", tmp_path / "online")
    shutil.copytree(tmp_path / "plain", tmp_path / "fixed")
    ends = []
    for kill in (True, False):
        mixer, online = Everything(every=4), fresh(tokenizer, seed=7)
        senses = SignalSources(
            evaluate=evaluate_on(rows), held_out=rows, reference=fresh(tokenizer, seed=9).eval(), gradient_rows=2
        )
        run = OnlineRun(
            mixer=mixer, start=mixer.init(names), rows=rows, steps=STEPS, arguments=ARGUMENTS, seed=3, senses=senses, begin_at=4,
            previous=first, objective=objective,
        )  # fmt: skip
        kept, killer = Checkpoints(key="o", previous_key="prefix", save_every=1), [KillAt(9, "end")] if kill else []
        try:
            result = train_online(online, run, folder=tmp_path / "online", checkpoints=kept, callbacks=killer)
        except KilledError:
            (seen,) = mixer.seen
            continue
        ends.append(result)
    train_segment(spec, Checkpoints(key="rest", previous_key="prefix"), start=4)
    fixed, never = fresh(tokenizer, seed=7), replace(run, mixer=Fixed(mixture), start=({}, MixerSegment(mixture, 6)))
    train_online(fixed, never, folder=tmp_path / "fixed", checkpoints=Checkpoints(key="f", previous_key="prefix"))
    assert same(weights(fixed), weights(plain))
    assert (seen.step, seen.total_steps) == (4, 6)
    assert [s.steps for s in ends[0].segments] == [4, 2]
    plan = ends[0].plan
    assert plan.steps == 6
    assert plan.plan[: len(first.plan)].fingerprint == first.plan.fingerprint
    drawn = sum(
        rows[n].supervised[plan.plan.row[len(first.plan) :][plan.plan.domain[len(first.plan) :] == k]].sum()
        for k, n in enumerate(names)
    )
    assert plan.supervised_tokens == drawn
    assert seen.tokens.sum() < drawn


def test_what_cannot_be_told_or_mixed_is_refused_first(texts, tokenizer, tmp_path, monkeypatch):
    mixer = Everything()
    run = run_of(mixer, mixer.init(NAMES), texts, tokenizer, senses=SignalSources())
    with pytest.raises(ConfigError) as error:
        train_online(fresh(tokenizer), run, folder=tmp_path)
    assert [p.split("SignalSources(")[1] for p in error.value.problems] == [
        "reference=...)`",
        "held_out=...)`",
        "evaluate=...)`",
    ]
    sdft = SelfDistillation(options=DistillationSettings(), contexts={}, stop_ids=(0,))
    with pytest.raises(ConfigError, match="cannot be mixed as the run goes"):
        train_online(
            fresh(tokenizer), run_of(mixer, mixer.init(NAMES), texts, tokenizer, objective=sdft), folder=tmp_path
        )
    liger = run_of(mixer, mixer.init(NAMES), texts, tokenizer, arguments={**ARGUMENTS, "use_liger_kernel": True})
    with pytest.raises(ConfigError, match="'excess' is read off the logits"):
        train_online(fresh(tokenizer), liger, folder=tmp_path)
    flash = fresh(tokenizer)
    flash.config._attn_implementation = "flash_attention_2"
    masked = run_of(mixer, mixer.init(NAMES), texts, tokenizer, document_mask=True)
    with pytest.raises(ConfigError, match="see each other"):
        train_online(flash, masked, folder=tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes"):
        train_online(fresh(tokenizer), run_of(mixer, mixer.init(NAMES), texts, tokenizer), folder=tmp_path)


@pytest.mark.parametrize("damage", ["broken", "domains"])
def test_a_checkpoint_of_another_mixer_is_refused(texts, tokenizer, tmp_path, damage):
    mixer = Everything()
    run = run_of(mixer, mixer.init(NAMES), texts, tokenizer)
    course = OnlineRunState(fresh(tokenizer), run, Usage(), key="k")
    course.begin(None)
    kept = {**course.json(), **({"domains": ["x"]} if damage == "domains" else {})}
    (tmp_path / MIXER_FILE).write_text(json.dumps(kept)[: 50 if damage == "broken" else None])
    with pytest.raises(StoreError, match="not the mixer of this run"):
        OnlineRunState(fresh(tokenizer), run, Usage(), key="k").begin(tmp_path)
