"""A run whose mixture is decided as it goes: killed anywhere it ends in the same bytes."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from killed import KillAt, KilledError
from online_runs import (
    ARGUMENTS,
    LENGTH,
    NAMES,
    STEPS,
    Everything,
    Fixed,
    evaluate_on,
    fresh,
    run_of,
    same,
    weights,
)

from opmix.data import MixtureDataset, plan_mixture
from opmix.errors import ConfigError, DataError, StoreError
from opmix.mixing.mixture import Mixture
from opmix.protocols.online_mixer import MixerSegment
from opmix.training.checkpoints import Checkpoints
from opmix.training.distillation import SelfDistillation
from opmix.training.full import planned_run, train_segment
from opmix.training.objectives import CAUSAL_LM, SFT, Usage
from opmix.training.online import MIXER_FILE, OnlineRun, OnlineRunState, train_online
from opmix.training.plan import plan_training
from opmix.training.segments import SegmentRows, lowered
from opmix.training.settings import DistillationSettings
from opmix.training.signals import SignalSources


@pytest.fixture(scope="module")
def unbroken(texts, tokenizer, tmp_path_factory):
    mixer, usage, model = Everything(), Usage(), fresh(tokenizer)
    folder = tmp_path_factory.mktemp("unbroken")
    result = train_online(
        model,
        run_of(mixer, mixer.init(NAMES), texts, tokenizer),
        folder=folder,
        usage=usage,
        checkpoints=Checkpoints(key="k", save_every=2),
    )
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
            mixer=mixer,
            start=mixer.init(names),
            rows=rows,
            steps=STEPS,
            arguments=ARGUMENTS,
            seed=3,
            senses=senses,
            begin_at=4,
            previous=first,
            objective=objective,
        )
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
