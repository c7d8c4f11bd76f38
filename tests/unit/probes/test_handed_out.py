"""A session whose works are done elsewhere: the same bytes as done here, whatever the cut; a killed probe goes on where it was."""

import numpy as np
import pytest
from probe_tasks import TRAINER, held_out, runtime_of, task_of

from opmix.compute.ledger import Ledger
from opmix.errors import StoreError, TrainingError
from opmix.execution.tasks import Ended, read_task
from opmix.mixing.mixture import InterpolationWeights, ProbeDesign
from opmix.probes import tasks
from opmix.probes.handed_out import Elsewhere, Sweep
from opmix.probes.session import ProbeSession
from opmix.probes.settings import ProbeSettings
from opmix.probes.tasks import ProxyEvaluator, ProxyLosses, joined, train_probe
from opmix.progress import Silent
from opmix.protocols.mixing_method import FULL, Fidelity
from opmix.runs.store import RunStore
from opmix.training.checkpoints import whole_checkpoints

DESIGN = ProbeDesign(("old", "new"), ("alpha", "beta"), np.array([[0.9, 0.1], [0.1, 0.9]]))
POINTS = [InterpolationWeights(DESIGN.probes, w) for w in ([1.0, 0.0], [0.7, 0.3], [0.5, 0.5], [0.0, 1.0])]
SETTINGS = ProbeSettings(steps=4, rank=2)


class InProcess:
    """Does what is handed out with a session of its own, as another process would."""

    def __init__(self, slots, session):
        self.slots, self.session, self.done = slots, session, []

    def run(self, folder, waiting):
        while waiting:
            task = waiting.popleft()
            self.session.perform(read_task(folder, task.name), Silent())
            self.done.append(task.name)
            yield Ended(task=task)


def session_of(rows, store, elsewhere=None, seed=0):
    runtime = runtime_of(rows)
    evaluator = ProxyEvaluator(runtime=runtime, settings=SETTINGS, held_out=held_out(rows))
    return ProbeSession(
        runtime=runtime,
        evaluator=evaluator,
        trainer=TRAINER,
        store=store,
        data_fingerprint="d",
        ledger=Ledger(),
        seed=seed,
        elsewhere=elsewhere,
    )


def looked_at(session):
    """What a search with one look on the way asks for."""
    early = session.simulate(DESIGN, POINTS[:3], label="proxies-at-2", fidelity=Fidelity(steps=2, thinning=2))
    return early, session.simulate(DESIGN, POINTS, label="proxies", fidelity=FULL)


@pytest.fixture(scope="module")
def here(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    with RunStore(folder) as store:
        session = session_of(rows, store)
        return folder, looked_at(session), session.ledger


@pytest.mark.slow
@pytest.mark.parametrize("slots", [2, 3])
def test_the_same_bytes_wherever_and_in_whatever_parts(rows, here, tmp_path, slots):
    folder, (early, whole), ledger = here
    with RunStore(tmp_path) as store:
        executor = InProcess(slots, session_of(rows, store))
        session = session_of(rows, store, Elsewhere(executor=executor, tries=1, save_every=1))
        others = looked_at(session)
    for one, other in zip((early, whole), others, strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)
        np.testing.assert_array_equal(one.gram, other.gram)
    for pattern in ("tables/*.npz", "probes/*/adapter_model.safetensors"):
        files = sorted(p.relative_to(folder) for p in folder.glob(pattern))
        assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.glob(pattern))  # parts are gone
        assert [(folder / f).read_bytes() for f in files] == [(tmp_path / f).read_bytes() for f in files]
    records = sorted(p.name for p in (folder / "steps").iterdir())
    assert records == sorted(p.name for p in (tmp_path / "steps").iterdir())
    booked = [[(e.step, e.purpose, e.tokens, e.flops) for e in kept.entries] for kept in (ledger, session.ledger)]
    assert booked[0] == booked[1]
    parts = [f"proxies-part-{k}" for k in range(slots)]
    assert executor.done == [
        "probe-00-old-at-2",
        "probe-01-new-at-2",
        *(f"proxies-at-2-part-{k}" for k in range(slots)),
        "probe-00-old",
        "probe-01-new",
        *parts,
    ]
    assert not list(tmp_path.glob("probes/*-parts"))


@pytest.mark.slow
def test_a_run_begun_here_goes_on_elsewhere_and_back(rows, here, tmp_path):
    _, (_, whole), _ = here
    with RunStore(tmp_path) as store:
        session_of(rows, store).simulate(DESIGN, POINTS[:1], label="first")
        executor = InProcess(2, session_of(rows, store))
        session = session_of(rows, store, Elsewhere(executor=executor, tries=1, save_every=1))
        found = session.simulate(DESIGN, POINTS, label="proxies")
        assert executor.done == ["proxies-part-0", "proxies-part-1"]
        np.testing.assert_array_equal(found.losses, whole.losses)
        executor.done.clear()
        (tmp_path / "probes" / "00-old" / "adapter_model.safetensors").write_bytes(b"cut off")
        session.simulate(DESIGN, POINTS, label="proxies")
        assert executor.done == ["probe-00-old"]  # what is damaged is made again, and is what it was


def test_a_process_that_sees_something_else_refuses(rows, tmp_path):
    with RunStore(tmp_path) as store:
        executor = InProcess(2, session_of(rows, store, seed=1))
        session = session_of(rows, store, Elsewhere(executor=executor, tries=1, save_every=1))
        with pytest.raises(StoreError, match="task probe-00-old: this process sees another model, other data or other"):
            session.simulate(DESIGN, POINTS, label="proxies")
    assert not list(tmp_path.glob("probes/*/adapter_model.safetensors"))


@pytest.mark.slow
def test_a_killed_probe_goes_on_from_its_own_checkpoint_to_the_same_bytes(rows, tmp_path, monkeypatch):
    runtime = runtime_of(rows)
    train_probe(task_of(tmp_path / "a"), runtime)
    task = task_of(tmp_path / "b", save_every=1)
    begun, real = [], tasks.StepProgress

    def told(report):
        def dies(done, of):
            begun.append(done)
            if done == 3 and begun.count(3) == 1:
                raise KeyboardInterrupt
            report(done, of)

        return real(dies)

    monkeypatch.setattr(tasks, "StepProgress", told)
    with pytest.raises(KeyboardInterrupt):
        train_probe(task, runtime)
    assert [step for step, _ in whole_checkpoints(task.parts)] == [1, 2]
    train_probe(task, runtime_of(rows))
    assert begun == [1, 2, 3, 3, 4]
    one, other = (tmp_path / run / "old" / "adapter_model.safetensors" for run in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_a_sweep_is_cut_into_nearly_equal_parts_in_order():
    sweep = Sweep(name="proxies", probes={}, points=POINTS)
    for num, sizes in ((1, [4]), (3, [2, 1, 1]), (9, [1, 1, 1, 1])):
        parts = sweep.parts(num)
        assert [len(part.points) for part in parts] == sizes
        assert [point for part in parts for point in part.points] == POINTS


@pytest.mark.slow
def test_parts_that_measured_another_model_are_not_joined(here):
    folder, _, _ = here
    read = ProxyLosses.load(folder / "tables" / "sequences-proxies.npz", ("alpha", "beta"))
    assert len(joined([read, read]).points.losses) == 2 * len(POINTS)
    shifted = ProxyLosses(points=read.points, baseline=read.baseline + 0.01, gram=read.gram)
    with pytest.raises(TrainingError, match=r"the current model's losses are .* expected the same within 0\.001 nats"):
        joined([read, shifted])
