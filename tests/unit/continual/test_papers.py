"""A property of each method's paper."""

from copy import deepcopy
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rounding import ROUNDINGS, assert_same_up_to_rounding, rounding_noise
from safetensors.torch import load_file
from school import same, weights_of

from opmix.continual import ewc, o_lora
from opmix.continual.a_gem import AGem
from opmix.continual.ewc import Ewc, fisher
from opmix.continual.gem import Gem
from opmix.continual.memory import batches_of, logits_of, memory_gradient, planned, summed_nll
from opmix.continual.o_lora import OLora
from opmix.continual.projection import inner, project
from opmix.continual.stepping import trained_parameters
from opmix.errors import ConfigError, StoreError
from opmix.mixing.mixture import Mixture

numbers = st.floats(-1, 1, allow_nan=False, width=32).map(lambda x: round(x, 3))


def parameters_with(gradient):
    """Two parameters whose gradients are a vector's halves."""
    found = [torch.nn.Parameter(torch.zeros(len(half))) for half in np.array_split(gradient, 2)]
    for p, half in zip(found, np.array_split(gradient, 2), strict=True):
        p.grad = torch.tensor(half, dtype=torch.float32)
    return found


def halves(rows):
    return [[torch.tensor(half, dtype=torch.float32) for half in np.array_split(row, 2)] for row in rows]


def joined(parameters):
    return torch.cat([p.grad for p in parameters]).double().numpy()


def nearest_by_trying(gradient, rows):
    """The quadratic program by trying every set of constraints that might bind."""
    best, found = np.inf, None
    sets = chain.from_iterable(combinations(range(len(rows)), n) for n in range(len(rows) + 1))
    for active in sets:
        G = rows[list(active)]
        z = gradient - np.linalg.pinv(G) @ (G @ gradient) if active else gradient
        if (rows @ z >= -1e-9).all() and np.sum((z - gradient) ** 2) < best:
            best, found = np.sum((z - gradient) ** 2), z
    return found


class TestProjection:
    @settings(max_examples=60, deadline=None)
    @given(arrays(float, 6, elements=numbers), arrays(float, (3, 6), elements=numbers))
    def test_it_is_the_nearest_that_satisfies_all(self, gradient, rows):
        parameters = parameters_with(gradient)
        changed = project(parameters, halves(rows))
        found, wanted = joined(parameters), nearest_by_trying(gradient, rows)
        assert changed == bool((rows.astype(np.float32).astype(float) @ gradient.astype(np.float32) < 0).any())
        assert (rows @ found >= -1e-5).all()
        assert wanted is not None
        assert np.linalg.norm(found - gradient) <= np.linalg.norm(wanted - gradient) + 1e-5

    @settings(max_examples=50, deadline=None)
    @given(arrays(float, 6, elements=numbers), arrays(float, 6, elements=numbers))
    def test_one_row_is_a_gem_s_formula(self, gradient, reference):
        parameters = parameters_with(gradient)
        project(parameters, halves([reference]))
        wanted, product = gradient, gradient @ reference
        if product < -1e-6:
            wanted = gradient - product / (reference @ reference) * reference
        np.testing.assert_allclose(joined(parameters), wanted, atol=2e-5)

    def test_the_scale_of_the_loss_does_not_matter(self):
        gradient, rows = np.array([1.0, -2.0, 0.5]), np.array([[-1.0, 0.5, 0.0], [0.0, 1.0, -1.0]])
        plain, scaled = parameters_with(gradient), parameters_with(1024 * gradient)
        assert project(plain, halves(rows))
        assert project(scaled, halves(rows * np.array([[1024.0], [7.0]])))
        np.testing.assert_allclose(joined(scaled), 1024 * joined(plain), rtol=1e-5)

    def test_a_margin_adds_more_of_each_reference_and_only_on_objection(self):
        rows = np.array([[1.0, 0.0], [0.0, 1.0]])
        parameters = parameters_with(np.array([-2.0, 1.0]))
        assert project(parameters, halves(rows), margin=0.5)
        np.testing.assert_allclose(joined(parameters), [0.5, 1.5])
        parameters = parameters_with(np.array([2.0, 1.0]))
        assert not project(parameters, halves(rows), margin=0.5)
        np.testing.assert_array_equal(joined(parameters), [2.0, 1.0])

    def test_what_is_not_finite_is_left_to_the_trainer(self):
        parameters = parameters_with(np.array([np.inf, 1.0]))
        assert not project(parameters, halves([np.array([-1.0, 0.0])]))


@pytest.mark.slow
@pytest.mark.parametrize("learner", [AGem(memory=16), Gem(memory=16, margin=0.0)], ids=["a_gem", "gem"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_no_step_s_gradient_objects_to_memory(school, tmp_path, monkeypatch, learner, accumulation):
    """At every step g . g_ref >= 0 after the correction, for all of a step's micro-batches together."""
    seen = []

    def watched(parameters, references, *rest):
        before = [p.grad.clone() for p in parameters]
        changed = project(parameters, references, *rest)
        norm = float(inner(before, before) ** 0.5)
        for row in references:
            slack = float(inner([p.grad for p in parameters], row)) / (norm * float(inner(row, row) ** 0.5))
            seen.append((changed, float(inner(before, row)), slack))
        if not changed:
            assert all(torch.equal(a, p.grad) for a, p in zip(before, parameters, strict=True))
        return changed

    monkeypatch.setattr(f"opmix.continual.{'gem' if isinstance(learner, Gem) else 'a_gem'}.project", watched)
    arguments = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    lesson = school.lesson(tmp_path / "lesson", old=("alpha", "gamma"))
    school.teach(learner, school.educated(), lesson, tmp_path / "run", steps=6, arguments=arguments)
    assert len(seen) == 6 * (2 if isinstance(learner, Gem) else 1)
    assert any(before < 0 for _, before, _ in seen)
    assert all(slack >= -1e-5 for _, _, slack in seen)


@pytest.mark.slow
def test_the_memory_s_gradient_is_that_of_the_mean_over_its_tokens(school, tmp_path):
    """In any batches, with masked labels, and without a trace in the step's own gradients or the random state."""
    lesson, model = school.lesson(tmp_path / "l", old=("alpha", "chat")), school.educated()
    rows = planned(lesson, Mixture.uniform(["alpha", "chat"]), 6)
    (whole,) = batches_of(lesson, rows, 6, torch.device("cpu"))

    def whole_gradient():
        model.zero_grad()
        model(**whole).loss.backward()
        return [p.grad.clone() for p in trained_parameters(model).values()]

    wanted, state = whole_gradient(), torch.get_rng_state()
    found = [memory_gradient(model, lesson, rows, size=size, seed=0, scale=2.0) for size in (6, 4, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, w) for p, w in zip(trained_parameters(model).values(), wanted, strict=True))
    for doubled in found:
        assert_same_up_to_rounding([g / 2 for g in doubled], whole_gradient, model)


class TestEwc:
    @pytest.mark.slow
    def test_without_strength_it_is_plain_training(self, school, tmp_path):
        learned = school.teach(
            Ewc(strength=0.0, sequences=4), school.educated(), school.lesson(tmp_path / "l"), tmp_path / "a"
        )
        plain = school.teach(None, school.educated(), school.lesson(tmp_path / "p"), tmp_path / "b")
        assert same(weights_of(learned), weights_of(plain))

    @pytest.mark.slow
    def test_great_strength_holds_the_weights_that_matter(self, school, tmp_path):
        start = weights_of(school.educated())
        plain = weights_of(
            school.teach(None, school.educated(), school.lesson(tmp_path / "p"), tmp_path / "b", steps=30)
        )
        lesson = school.lesson(tmp_path / "l")
        held = weights_of(school.teach(Ewc(strength=1e6), school.educated(), lesson, tmp_path / "a", steps=30))
        weight = load_file(lesson.folder / ewc.FILE)

        def moved(end):
            return sum(float((f * (end[n] - start[n]) ** 2).sum()) for n, f in weight.items())

        assert moved(held) < 0.1 * moved(plain)

    @pytest.mark.slow
    def test_the_penalty_counts_once_a_step(self, school, tmp_path):
        """Two micro-batches of two rows or one of four: the same step, up to rounding."""
        start = school.educated()

        def end(n):
            lesson = school.lesson(Path(mkdtemp(dir=tmp_path)))
            arguments = {"per_device_train_batch_size": 4 // n, "gradient_accumulation_steps": n, "optim": "sgd"}
            learner = Ewc(strength=1e3, sequences=16)
            model = school.teach(learner, deepcopy(start), lesson, lesson.folder / "run", arguments=arguments)
            return weights_of(model)

        assert_same_up_to_rounding(end(2), lambda: end(1), start)

    def test_the_penalty_s_gradient_is_that_of_equation_3(self, school):
        model = school.model()
        parameters = trained_parameters(model)
        centre = {n: torch.zeros_like(p) for n, p in parameters.items()}
        held = {n: torch.rand_like(p) for n, p in parameters.items()}
        sum((3.0 / 2 * held[n] * (p - centre[n]) ** 2).sum() for n, p in parameters.items()).backward()
        wanted = {n: p.grad.clone() for n, p in parameters.items()}
        for p in parameters.values():
            p.grad = torch.zeros_like(p)
        ewc.pull(parameters, centre, held, 3.0)
        for n, p in parameters.items():
            torch.testing.assert_close(p.grad, wanted[n])

    def test_the_fisher_of_data_labels_is_the_square_of_their_gradient(self, school, tmp_path):
        lesson, model = school.lesson(tmp_path / "l"), school.model()
        rows = planned(lesson, Mixture.of({"alpha": 1.0}), 1)
        found = fisher(model, lesson, rows, "data")
        (batch,) = batches_of(lesson, rows, 1, torch.device("cpu"))
        summed_nll(logits_of(model, batch), batch["labels"][:, 1:]).backward()
        for name, p in trained_parameters(model).items():
            torch.testing.assert_close(found[name], p.grad**2 / 127)

    @pytest.mark.slow
    def test_sampled_labels_give_the_expected_curvature_of_the_output(self, school, tmp_path):
        """For the head's weight W the Fisher has a closed form: E[(p - y)^2 h^2] = p (1 - p) h^2, mean over tokens."""
        lesson, model = school.lesson(tmp_path / "l"), school.educated()
        rows = planned(lesson, Mixture.of({"alpha": 1.0}), 64)
        found = fisher(model, lesson, rows, "sampled")["lm_head.weight"]
        wanted = torch.zeros_like(found)
        with torch.no_grad():
            for batch in batches_of(lesson, rows, 16, torch.device("cpu")):
                out = model(input_ids=batch["input_ids"], output_hidden_states=True)
                p, h = out.logits[:, :-1].softmax(-1).flatten(0, 1), out.hidden_states[-1][:, :-1].flatten(0, 1)
                wanted += (p * (1 - p)).T @ h**2
        wanted /= 64 * 127
        assert float(found.sum() / wanted.sum()) == pytest.approx(1.0, abs=0.1)
        assert float(torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1]) > 0.9

    def test_stages_add_up_and_fade(self, school, tmp_path):
        learner = Ewc(sequences=4, decay=0.5)
        first = school.lesson(tmp_path / "1")
        learner.begin(school.model(), first)
        second = school.lesson(tmp_path / "2", old=("beta",), before=first.folder)
        learner.begin(school.model(), second)
        alone = school.lesson(tmp_path / "3", old=("beta",))
        learner.begin(school.model(), alone)
        one, both, other = (load_file(lesson.folder / ewc.FILE) for lesson in (first, second, alone))
        for name in both:
            torch.testing.assert_close(both[name], other[name] + 0.5 * one[name])

    def test_another_model_s_fisher_is_refused_and_never_reused(self, school, tmp_path):
        lesson = school.lesson(tmp_path / "l")
        Ewc(sequences=4).begin(school.model(), lesson)
        before = load_file(lesson.folder / ewc.FILE)
        Ewc(sequences=4).begin(school.model(1), lesson)
        assert not same(before, load_file(lesson.folder / ewc.FILE))
        with pytest.raises(StoreError, match="not the Fisher information of this model"):
            ewc.read_fisher(lesson.folder / ewc.FILE, {"other": torch.zeros(2)})


class TestOLora:
    def stages(self, school, tmp_path, strength):
        """Largest cosine between rows of the second stage's A and of the first's; the model after each stage."""
        learner = OLora(rank=2, strength=strength, learning_rate=1e-2)
        first = school.lesson(tmp_path / f"1-{strength}")
        model = school.teach(learner, school.educated(), first, tmp_path / f"a-{strength}", steps=4)
        second = replace(school.lesson(tmp_path / f"2-{strength}", before=first.folder), seed=1)
        arguments = {"lr_scheduler_type": "linear"}
        model = school.teach(
            learner, model, second, tmp_path / f"b-{strength}", new="gamma", steps=40, arguments=arguments
        )
        one, both = load_file(first.folder / o_lora.FILE), load_file(second.folder / o_lora.FILE)
        assert one.keys() == both.keys()
        worst = 0.0
        for place, rows in both.items():
            assert rows.shape[0] == 4
            assert torch.equal(rows[:2], one[place])
            unit = torch.nn.functional.normalize(rows, dim=1)
            worst = max(worst, float((unit[:2] @ unit[2:].T).abs().max()))
        return worst, model

    @pytest.mark.slow
    def test_a_stage_s_rows_stay_clear_of_those_before(self, school, tmp_path):
        free, _ = self.stages(school, tmp_path, 0.0)
        held, model = self.stages(school, tmp_path, 100.0)
        assert free > 0.2
        assert held < 0.05
        assert not hasattr(model, "peft_config")
        assert not any("lora" in name for name in model.state_dict())

    def test_the_penalty_s_gradient_is_that_of_equation_6(self):
        before, new = torch.randn(4, 6), torch.nn.Parameter(torch.randn(2, 6))
        (0.5 * ((before @ new.T) ** 2).sum()).backward()
        wanted, new.grad = new.grad.clone(), torch.zeros(2, 6)
        o_lora.repel(new, before, 0.5)
        torch.testing.assert_close(new.grad, wanted)

    @pytest.mark.parametrize("arch", ["llama", "gpt2"])
    def test_merging_changes_nothing_of_what_is_computed(self, school, tmp_path, arch):
        from opmix.testing import tiny_model

        learner, lesson = OLora(rank=2), school.lesson(tmp_path / "l")
        ids = torch.arange(2, 40)[None]
        model = learner.begin(tiny_model(arch), lesson)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name:
                    p.normal_(std=0.1)
            wanted = model.eval()(ids).logits
            (noise,) = rounding_noise(lambda: model(ids).logits, model)
            plain = tiny_model(arch)(ids).logits
            found = learner.end(model, lesson)(ids).logits
        assert not torch.allclose(plain, wanted, atol=1e-2)
        torch.testing.assert_close(found, wanted, rtol=0, atol=ROUNDINGS * noise)

    @pytest.mark.slow
    def test_it_counts_an_adapter_s_training(self, school, tmp_path):
        lesson = school.lesson(tmp_path / "l")
        school.teach(OLora(rank=2), school.educated(), lesson, tmp_path / "run", steps=3)
        tokens = 3 * 4 * 128
        assert 0.6 < lesson.usage.flops / (tokens * lesson.shape.train(128)) < 0.9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ewc(strength=-1.0), "strength is -1.0"),
        (lambda: Ewc(sequences=0), "sequences is 0"),
        (lambda: Ewc(decay=2.0), "decay is 2.0"),
        (lambda: AGem(memory=0), "memory is 0"),
        (lambda: Gem(batch=0), "batch is 0"),
        (lambda: Gem(margin=-1.0), "margin is -1.0"),
        (lambda: OLora(rank=0), "rank is 0"),
        (lambda: OLora(strength=-1.0), "strength is -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.slow
def test_what_was_learned_is_forgotten_less_than_by_plain_training(school, tmp_path):
    """Alpha, then beta: the loss on alpha afterwards, for each of two seeds, beside plain training on beta."""
    learners = {"ewc": Ewc(), "a_gem": AGem(), "gem": Gem(), "gem, no margin": Gem(margin=0.0)}
    for seed in (0, 1):
        losses = {}
        for name, learner in {"plain": None, **learners}.items():
            lesson = replace(school.lesson(tmp_path / f"l-{seed}-{name}"), seed=seed)
            model = school.teach(
                learner,
                school.educated(80, seed),
                lesson,
                tmp_path / f"r-{seed}-{name}",
                steps=60,
                seed=seed,
                save_every=1000,
            )
            losses[name] = school.loss(model, "alpha")
        for name in learners:
            assert losses[name] < losses["plain"], (seed, losses)
