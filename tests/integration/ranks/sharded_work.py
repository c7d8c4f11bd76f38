"""What one process does, and two ranks that hold a part of the model each: written to FOLDER/NAME.json.

`python sharded_work.py FOLDER` under torchrun does that and what `ranked_work.py` does, each in a folder of its own (`both`).
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import ranked_work
import torch
from ranked_work import MIX, POINTS, STEPS, TRAINER, VOCABULARY, losses, message_of, rows_of, searched

from opmix.models.layers import model_fingerprint
from opmix.models.load import load_model
from opmix.models.sharded import is_part, is_sharded, own_part
from opmix.probes.evaluation import HeldOut, evaluate, evaluate_proxies, token_nll
from opmix.probes.kinds import check_probes, kind_of
from opmix.probes.settings import ProbeSettings
from opmix.runs.ranks import part, ranks_here
from opmix.testing import tiny_model
from opmix.testing.models import ARCHITECTURES
from opmix.training.checkpoints import Checkpoints, whole_checkpoints
from opmix.training.factory import default_trainer
from opmix.training.full import planned_run, train_segment
from opmix.training.plan import plan_training

PROBES = ProbeSettings(steps=4, rank=2)


def renamed(points):
    return [replace(point, names=tuple(f"probe_{n}" for n in range(len(point.names)))) for point in points]


def proxied(model, folder, rows):
    """Losses and weights of interpolations of the same kept probes, by both back ends."""
    (*folders,) = sorted(path for path in (folder / "probes").iterdir() if "-at-" not in path.name)
    sets = [HeldOut(name, r.batch(np.arange(7)), np.full(7, 40.0)) for name, r in rows.items()]
    told = {}
    for backend in ("merge", "scale"):
        with kind_of(PROBES).interpolated(model, PROBES, folders, backend) as (proxies, gram):
            told[backend] = evaluate_proxies(proxies, renamed(POINTS), sets, batch_tokens=32).losses.tolist()
            told["gram"] = gram.tolist()
            if backend == "merge":
                with proxies.at(renamed(POINTS)[1]) as entered:
                    told["merged"] = model_fingerprint(entered)
            else:
                with proxies.at(renamed(POINTS)[1]) as entered:
                    told["tokens"] = [table.tolist() for table in token_nll(entered, sets)]
    return told


def trained(folder, rows, stops, arguments):
    """In stretches of one run, each from the checkpoint of the one before; losses, and how the last Trainer held the model."""
    plan, made = plan_training(rows, MIX, steps=STEPS, arguments=arguments, seed=0), []

    def make(spec):
        made.append(default_trainer(spec))
        return made[-1]

    for stop in stops:
        model = tiny_model(vocab_size=VOCABULARY, tie_word_embeddings=True)
        spec = replace(planned_run(model, plan, folder=folder, seed=0), stop_at=stop)
        trainer = train_segment(spec, Checkpoints(key="k", save_every=2), make_trainer=make)
    parts = [is_part(weight.data) for weight in trainer.model.parameters()]
    kept = load_model(folder / f"checkpoint-{STEPS}", dtype="float32", device="cpu")
    return {"losses": losses(trainer), "parts": all(parts), "wrapped": is_sharded(trainer.model), "kept": _sum(kept)}


def _sum(model):
    return sum(float(weight.detach().double().abs().sum()) for weight in model.parameters())


def cut_off(folder):
    """A checkpoint counts until a file inside one of its folders has lost its end."""
    before = [step for step, _ in whole_checkpoints(folder, "k")]
    file = next((folder / f"checkpoint-{STEPS}" / "optimizer_0").glob("*.distcp"))
    os.truncate(file, file.stat().st_size - 1)
    return [before, [step for step, _ in whole_checkpoints(folder, "k")]]


def families(folder, rows, ranks):
    """Losses and fingerprint of a small model of every architecture."""
    sets = [HeldOut(name, r.batch(np.arange(5)), np.full(5, 40.0)) for name, r in rows.items()]
    told = {}
    for arch in sorted(ARCHITECTURES.keys() - {"gpt2"}):  # which transformers has no plan for
        with ranks.in_turn():
            if ranks.size == 1:
                tiny_model(arch, vocab_size=VOCABULARY).save_pretrained(folder / arch)
        model = load_model(folder / arch, dtype="float32", device="cpu", sharded=ranks.size > 1)
        told[arch] = [evaluate(model, sets, batch_tokens=32).losses.tolist(), model_fingerprint(model)]
    return told


def of_two(folder, model, rows, ranks):
    """What only ranks can show."""
    ends = trained(folder / "parts", rows, (2, 3, STEPS), {**TRAINER, "fsdp": True})
    handed = {**TRAINER, "fsdp": True, "fsdp_config": {"reshard_after_forward": False}}
    found = {"ends": ends, "kept open": trained(folder / "open", rows, (STEPS,), handed)["losses"]}
    found["environment"] = sorted(n for n in os.environ if n.startswith(("ACCELERATE_USE", "FSDP_")))
    found["other kind"] = message_of(lambda: trained(folder / "parts", rows, (STEPS,), TRAINER))
    found["own"] = ranks.collected(sum(own_part(w).numel() for w in model.parameters()))
    refused = (replace(PROBES, kind="full"), replace(PROBES, kind="lora+embeddings"))
    found["refused"] = [message_of(lambda s=settings: check_probes(model, s)) for settings in refused]
    ranks.together()
    if ranks.first:
        found["cut off"] = cut_off(folder / "parts")
    return found


def main(folder):
    ranks = ranks_here()
    rows, several = rows_of(folder, ranks), ranks.size > 1
    own = folder / ("two" if several else "one")
    with ranks.in_turn():
        if not several:
            tiny_model(vocab_size=VOCABULARY).save_pretrained(folder / "model")

    def loaded():
        return load_model(folder / "model", dtype="float32", device="cpu", sharded=several)

    model = loaded()
    found = {
        "fingerprint": ranks.collected(model_fingerprint(model)),
        "weights": sum(w.numel() for w in model.parameters()),
        "searched": searched(own / "search", rows, loaded()),
        "proxied": proxied(model, folder / "one" / "search", rows),
        "families": families(folder, rows, ranks),
        "given back": model_fingerprint(model),
    }
    plain = trained(own / "plain", rows, (2, 3, STEPS), TRAINER) if not several else of_two(own, model, rows, ranks)
    if ranks.first:
        (folder / f"{own.name}.json").write_text(json.dumps({**found, "trained": plain}))


def both(folder):
    """All that is done on one rank and on two."""
    ranked_work.main(folder / "ranked")
    main(folder / "sharded")


if __name__ == "__main__":
    torch.set_num_threads(1)
    both(Path(sys.argv[1]))
    part()
