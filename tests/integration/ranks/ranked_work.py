"""What is done on one rank and on two: what came out is written to FOLDER/NAME.json; `sharded_work.py` is the program."""

import json
import time
from dataclasses import replace

import numpy as np
from transformers import Trainer

from opmix.compute.ledger import Ledger
from opmix.config import parse_config
from opmix.data import PackedSequences, prepare_domain
from opmix.domain import Domain, Source
from opmix.errors import ConfigError, OpMixError, StoreError
from opmix.mixing.mixture import InterpolationWeights, Mixture, ProbeDesign
from opmix.mixture_search.context import prepare_stage
from opmix.models.layers import model_fingerprint, model_shape
from opmix.probes.evaluation import HeldOut, evaluate
from opmix.probes.session import ProbeSession
from opmix.probes.settings import ProbeSettings
from opmix.probes.tasks import ProbeRuntime, ProxyEvaluator
from opmix.progress import Silent
from opmix.protocols.mixing_method import FULL, Fidelity
from opmix.runs.ranks import ranks_here
from opmix.runs.store import RunStore
from opmix.testing import tiny_chat_tokenizer, tiny_model, tiny_tokenizer, write_toy_chats, write_toy_domains
from opmix.training.checkpoints import Checkpoints, whole_checkpoints
from opmix.training.factory import default_trainer, run_training, take_over_optimizer
from opmix.training.full import planned_run, train_segment
from opmix.training.objectives import Usage
from opmix.training.plan import plan_training

LENGTH, STEPS, VOCABULARY = 16, 6, 300
TRAINER = {"learning_rate": 1e-2, "batch": 8, "micro_batch": 2, "logging_strategy": "steps", "logging_steps": 1}
MIX = Mixture.of({"alpha": 0.6, "beta": 0.4})
DESIGN = ProbeDesign(("old", "new"), ("alpha", "beta"), np.array([[0.9, 0.1], [0.1, 0.9]]))
POINTS = [InterpolationWeights(DESIGN.probes, w) for w in ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0])]


def rows_of(folder, ranks):
    tokenizer = tiny_tokenizer(vocab_size=VOCABULARY)
    with ranks.in_turn():
        files = write_toy_domains(folder, ("alpha", "beta"), 120)
        split = {
            name: prepare_domain(
                Domain(name=name, train=Source(paths=(str(path),))), tokenizer, cache_dir=folder / "cache"
            ).train
            for name, path in files.items()
        }
    return {name: PackedSequences(tokens, LENGTH) for name, tokens in split.items()}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def plainly(folder, rows):
    plan = plan_training(rows, MIX, steps=STEPS, arguments=TRAINER, seed=0)
    model = tiny_model(vocab_size=VOCABULARY)
    trainer = run_training(default_trainer, planned_run(model, plan, folder=folder, seed=0))
    return losses(trainer), model


def in_stretches(folder, rows, stops):
    """Trained stop by stop, each from the checkpoint of the one before."""
    plan, told = plan_training(rows, MIX, steps=STEPS, arguments=TRAINER, seed=0), []
    for stop in stops:
        spec = replace(planned_run(tiny_model(vocab_size=VOCABULARY), plan, folder=folder, seed=0), stop_at=stop)
        told = losses(train_segment(spec, Checkpoints(key="k", save_every=2), make_trainer=default_trainer))
    return told


def late_rank(folder, rows, ranks):
    """Rank 1 writes its random state a moment after the others are done: the checkpoint must count all the same."""
    real = Trainer._save_rng_state

    def late(self, out):
        if not ranks.first:
            time.sleep(0.7)
        real(self, out)

    Trainer._save_rng_state = late
    try:
        in_stretches(folder, rows, (3,))
    finally:
        Trainer._save_rng_state = real
    ranks.together()
    whole = [step for step, _ in whole_checkpoints(folder, "k")]
    return {"whole": whole, "files": sorted(p.name for p in (folder / "checkpoint-3").glob("rng_state*"))}


def continued(folder, rows):
    """The moments of a run taken over by a new one."""
    (state,) = [path / "optimizer.pt" for step, path in whole_checkpoints(folder, "k") if step == STEPS]
    plan = plan_training(rows, MIX, steps=2, arguments=TRAINER, seed=1)
    trainer = default_trainer(planned_run(tiny_model(vocab_size=VOCABULARY), plan, folder=folder / "next", seed=1))
    take_over_optimizer(trainer, state)
    return float(sum(s["exp_avg"].abs().sum() for s in trainer.optimizer.state.values()))


def searched(folder, rows, model):
    runtime = ProbeRuntime(model=model, shape=model_shape(model), rows=rows, progress=Silent())
    sets = [HeldOut(name, r.batch(np.arange(11)), np.full(11, 40.0)) for name, r in rows.items()]
    sets[1] = sets[1].first(1)  # fewer rows than ranks
    settings = ProbeSettings(steps=4, rank=2)
    before = model_fingerprint(model)
    with RunStore(folder) as store:

        def session():
            return ProbeSession(
                runtime=runtime,
                evaluator=ProxyEvaluator(runtime=runtime, settings=settings, held_out=sets),
                trainer={name: TRAINER[name] for name in ("learning_rate", "batch", "micro_batch")},
                store=store,
                data_fingerprint="d",
                ledger=Ledger(),
            )

        first = session()
        first.simulate(DESIGN, POINTS, label="early", fidelity=Fidelity(steps=2))
        found = first.simulate(DESIGN, POINTS, label="proxies", fidelity=FULL)
        records = {p.name: p.stat().st_mtime_ns for p in (folder / "steps").iterdir()}
        again = session().simulate(DESIGN, POINTS, label="proxies", fidelity=FULL)
        unchanged = records == {p.name: p.stat().st_mtime_ns for p in (folder / "steps").iterdir()}
    return {
        "losses": found.losses.tolist(),
        "again": again.losses.tolist() == found.losses.tolist() and unchanged,
        "given_back": before == model_fingerprint(model),
        "keys": {
            p.stem: json.loads(p.read_text())["fingerprint"]
            for p in sorted((folder / "steps").iterdir())
            if p.stem.startswith("probe")
        },
        "ledger": [[e.step, e.tokens, e.flops] for e in first.ledger.entries],
        "left": sorted(p.name for p in folder.iterdir()),
    }


def answered(folder, cache, ranks):
    """Conversations, whose rows are worth what they have supervised tokens."""
    with ranks.in_turn():
        files = write_toy_chats(folder, {"terse": 1, "wordy": 2}, 120)
    config = parse_config(
        {
            "model": "m",
            "domains": {n: str(f) for n, f in files.items()},
            "budget": 1000,
            "sequence_length": 160,
            "objective": "sft",
        }
    )
    tokenizer = tiny_chat_tokenizer()
    data = prepare_stage(config, tokenizer, base=folder, cache_dir=cache, progress=Silent(), limit=256)
    plan = plan_training(
        data.train,
        Mixture.of({"terse": 0.5, "wordy": 0.5}),
        steps=4,
        arguments=TRAINER,
        seed=0,
        objective=data.objective,
    )
    model = tiny_model(vocab_size=len(tokenizer))
    trainer = run_training(
        data.objective.trainer(None, Usage(), model_shape(model)),
        planned_run(model, plan, folder=folder / "run", seed=0),
    )
    return {"losses": losses(trainer), "tokens": plan.supervised_tokens}


def message_of(call):
    try:
        call()
    except OpMixError as error:
        return f"{type(error).__name__}: {error}"
    return None


def refused(folder, ranks):
    """What every rank hears when one of them fails."""

    def rank_one_fails():
        with ranks.agreed():
            if ranks.rank == 1:
                raise StoreError("its disk is full")

    def locked():
        (folder / "held").mkdir(exist_ok=True)
        (folder / "held" / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
        with RunStore(folder / "held"):
            pass

    def alone_fails():
        with RunStore(folder / "alone") as store:
            store.step("a", {}, lambda: (_ for _ in ()).throw(ConfigError("no such thing")))

    calls = (rank_one_fails, locked, alone_fails)
    return [ranks.collected(message_of(call)) for call in calls]


def main(folder):
    ranks = ranks_here()
    rows = rows_of(folder, ranks)
    name = "one" if ranks.size == 1 else "two"
    own = folder / name
    told, model = plainly(own / "plain", rows)
    sets = [HeldOut(n, r.batch(np.arange(11)), np.full(11, 40.0)) for n, r in rows.items()]
    found = {
        "ranks": ranks.collected((ranks.rank, ranks.first, ranks.shared(ranks.rank))),
        "rows": ranks.gathered(np.arange(11.0)[ranks.own(11)]).tolist(),
        "losses": told,
        "fingerprints": ranks.collected(model_fingerprint(model)),
        "evaluated": evaluate(model, sets).losses.tolist(),
        "in_stretches": in_stretches(own / "stretches", rows, (2, 3, STEPS)),
        "searched": searched(own / "search", rows, tiny_model(vocab_size=VOCABULARY)),
        "moments": continued(own / "stretches", rows),
        "answered": answered(own / "chats", folder / "cache", ranks),
    }
    # A run that another number of ranks began.
    there = folder / "handed"
    if ranks.size == 1:
        in_stretches(there, rows, (3,))
    else:
        found["taken_over"] = in_stretches(there, rows, (STEPS,))
        found["late"] = late_rank(own / "late", rows, ranks)
        found["refused"] = refused(own, ranks)
    if ranks.first:
        (folder / f"{name}.json").write_text(json.dumps(found))
