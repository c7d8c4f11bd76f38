"""Every speed of opmix as a ratio to something everybody knows, measured in one run; and a guard over the ratios.

    OMP_NUM_THREADS=1 python benchmarks/bench.py [--only laws,start] [--repeats 5] [--update]

Ours and its anchor take turns, so what else the machine does falls on both; what counts is the median of the ratios of a turn. Times are
CPU time of one thread (wall time on a GPU). JSON goes to runs/bench/bench.json; `--update` keeps it in benchmarks/results/bench.json, the
reference: a median ratio that lost more than half over the reference's own, beyond the spread of both, ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from law_speed import effective, looks, ours, scipys, table

from opmix.data import PackedSequences, prepare_domain
from opmix.data.sampler import plan_mixture
from opmix.domain import Domain, Source
from opmix.mixing.decision import decide
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import InterpolationWeights, Mixture
from opmix.models.layers import lora_targets
from opmix.probes.evaluation import HeldOut, evaluate, evaluate_proxies
from opmix.probes.interpolation import make_proxies
from opmix.progress import Silent
from opmix.testing import tiny_adapter, tiny_model, tiny_tokenizer, write_toy_domains
from opmix.training.full import train_on_mixture

REFERENCE = Path(__file__).parent / "results" / "bench.json"
LOST = 1.5
LENGTH, BATCH, STEPS = 128, 8, 25
Work = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """What is measured: ours beside its anchor."""

    name: str
    anchor: str
    ours: Work
    theirs: Work
    clock: Callable[[], float] = time.process_time


def children() -> float:
    """CPU time of the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def started(*words: str) -> Work:
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)


class Bench:
    """A small model, rows and files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokenizer = folder, tiny_tokenizer()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.files = write_toy_domains(folder, ("web", "code"), 2000)
        self.domains = [Domain(name=n, train=Source(paths=(str(p),))) for n, p in self.files.items()]
        cache = folder / "cache"
        prepared = {d.name: prepare_domain(d, self.tokenizer, cache_dir=cache) for d in self.domains}
        self.rows = {n: PackedSequences(d.train, LENGTH) for n, d in prepared.items()}

    def model(self, width: int = 128) -> Any:
        sizes = {
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": 4,
            "max_position_embeddings": 256,
        }
        return tiny_model(vocab_size=2048, **sizes).to(self.device)

    def finished(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def clock(self) -> float:
        return time.perf_counter() if self.device == "cuda" else time.process_time()


def training(bench: Bench) -> Iterator[Pair]:
    """The library's training against a loop that does the arithmetic and nothing else."""
    ids = torch.from_numpy(
        np.concatenate([r.batch(np.arange(BATCH * STEPS // 2)) for r in bench.rows.values()]).astype(np.int64)
    )

    def whole() -> None:
        arguments = {"per_device_train_batch_size": BATCH, "learning_rate": 1e-3}
        with tempfile.TemporaryDirectory() as out:
            train_on_mixture(
                bench.model(),
                bench.rows,
                Mixture.of({"web": 0.5, "code": 0.5}),
                tokens=STEPS * BATCH * LENGTH,
                arguments=arguments,
                seed=0,
                output_dir=Path(out),
                progress=Silent(),
                name="bench",
            )
        bench.finished()

    def bare() -> None:
        model = bench.model().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(STEPS):
            batch = ids[step * BATCH : (step + 1) * BATCH].to(bench.device)
            with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bench.device == "cuda"):
                loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        bench.finished()

    yield Pair(f"full training, {STEPS} steps", "a bare PyTorch loop", whole, bare, bench.clock)


def proxies(bench: Bench) -> Iterator[Pair]:
    """A simulated model against a forward pass, by back end and width."""
    for width in (128, 256):
        model = bench.model(width)
        held_out = [HeldOut("x", np.random.default_rng(0).integers(0, 2048, (32, 256)), np.full(32, 700.0))]
        plain, names = bench.model(width), [f"probe_{i}" for i in range(5)]
        targets = lora_targets(model)
        for seed, name in enumerate(names):
            model = tiny_adapter(model, name, seed, r=16, target_modules=targets)
        for backend in ("merge", "scale"):
            made = make_proxies(model, names, backend=backend)
            weights = [InterpolationWeights.uniform(names)]
            yield Pair(
                f"simulated model, {backend}, width {width}",
                "a forward pass",
                lambda m=made, w=weights, h=held_out: (evaluate_proxies(m, w, h), bench.finished()),
                lambda p=plain, h=held_out: (evaluate(p, h), bench.finished()),
                bench.clock,
            )


def tokenising(bench: Bench) -> Iterator[Pair]:
    """Text files to packed tokens, against `datasets` reading and mapping the same."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    turn = iter(range(10**6))

    def whole() -> None:
        prepare_domain(bench.domains[0], bench.tokenizer, cache_dir=bench.folder / f"cache-{next(turn)}")

    def theirs() -> None:
        rows = Dataset.from_json(str(bench.files["web"]), cache_dir=str(bench.folder / f"hf-{next(turn)}"))
        rows.map(lambda r: bench.tokenizer(r["text"]), batched=True, remove_columns=["text"])

    yield Pair("tokenise and pack", "datasets.map", whole, theirs)


def laws(_: Bench) -> Iterator[Pair]:
    """Fits against scipy's least squares, and their growth with domains and runs."""
    for size in ((2, 9), (6, 20)):
        data = table(*size, 1)
        yield Pair(
            f"law, leave-one-out and solve, {size[0]} x {size[1]}",
            "scipy, a call a fit",
            lambda d=data: ours(*d),
            lambda d=data: scipys(*d),
        )
    many, some = looks(17, 1), looks(6, 1)
    yield Pair(
        "effective tokens, 17 domains",
        "the same of 6 domains",
        lambda: effective(*many),
        lambda: effective(*some),
    )
    mixtures, losses = table(64, 200, 1)
    names, few = [f"d{i}" for i in range(64)], [f"m{i}" for i in range(5)]

    def large() -> None:
        fit = fit_law(mixtures, losses[:, :5], domains=names, metrics=few)
        decide(fit, candidates={"prior": Mixture.uniform(names)}, reference="prior")

    yield Pair(
        "fit of 64 domains x 200 runs x 5 metrics with its decision",
        "100 singular value decompositions of the table",
        large,
        lambda: [np.linalg.svd(mixtures, full_matrices=False) for _ in range(100)],
    )


def start(bench: Bench) -> Iterator[Pair]:
    """What a command costs before it does anything."""
    frame = started("-c", "import typer, rich.console, rich.table")
    yield Pair("opmix --help", "importing typer and rich", started("-m", "opmix", "--help"), frame, children)
    rng = np.random.default_rng(0)
    shares, file = rng.dirichlet(np.ones(3), 12), bench.folder / "runs.csv"
    lines = [
        "run,ratio_a,ratio_b,ratio_c,loss_x",
        *(f"r{i},{a!r},{b!r},{c!r},{2 + float(np.exp(-a))!r}" for i, (a, b, c) in enumerate(shares.tolist())),
    ]
    file.write_text("\n".join(lines))
    libraries = started("-c", "import numpy, scipy.optimize, clarabel, pydantic, rich, typer")
    turn = iter(range(10**6))

    def fit() -> None:
        started("-m", "opmix", "fit", str(file), "--out", str(bench.folder / f"fit-{next(turn)}"))()

    yield Pair("opmix fit of 12 runs with its report", "importing its libraries", fit, libraries, children)


def sampling(_: Bench) -> Iterator[Pair]:
    """A plan of 200,000 sequences for many domains against few."""

    def plan(count: int) -> Work:
        names = [f"d{i}" for i in range(count)]
        mixture, there = Mixture.uniform(names), dict.fromkeys(names, 200_000 // count + 10)
        return lambda: plan_mixture(mixture, 200_000, there, seed=0)

    yield Pair("plan of 200,000 sequences, 10,000 domains", "the same of 10 domains", plan(10_000), plan(10))


GROUPS = {f.__name__: f for f in (training, proxies, tokenising, laws, start, sampling)}


def measured(pair: Pair, repeats: int) -> dict[str, Any]:
    """Ratios of `repeats` turns, after one that nobody looks at."""
    mine, ratios = [], []
    for turn in range(repeats + 1):
        times = []
        for work in (pair.ours, pair.theirs) if turn % 2 else (pair.theirs, pair.ours):
            began = pair.clock()
            work()
            times.append(pair.clock() - began)
        own, other = times if turn % 2 else times[::-1]
        if turn:
            mine.append(own)
            ratios.append(own / max(other, 1e-9))
    return {
        "anchor": pair.anchor,
        "seconds": statistics.median(mine),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }


def lost(found: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """A sentence for every ratio that grew by more than half, and beyond both spreads."""
    return [
        f"{name}: {now['ratio']:.2f} of {now['anchor']}, was {was['ratio']:.2f}"
        for name, now in found.items()
        if (was := reference.get(name)) and now["ratio"] > LOST * was["ratio"] and now["spread"][0] > was["spread"][1]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(GROUPS), help=f"Of {', '.join(GROUPS)}.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for group in args.only.split(","):
            for pair in GROUPS[group](bench):
                found[pair.name] = said = measured(pair, args.repeats)
                low, high = said["spread"]
                print(
                    f"{pair.name:<62} {said['seconds']:8.3f} s   {said['ratio']:6.2f} ({low:.2f}-{high:.2f}) of {pair.anchor}",
                    flush=True,
                )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.platform(),
        "device": device,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    for file in (args.out / "bench.json", *([REFERENCE] if args.update else [])):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**facts, "repeats": args.repeats, "pairs": found}, indent=1) + "\n")
    known = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {"pairs": {}, "device": device}
    worse = lost(found, known["pairs"]) if known["device"] == device else []
    for sentence in worse:
        print(f"slower: {sentence}")
    sys.exit(bool(worse))


if __name__ == "__main__":
    main()
