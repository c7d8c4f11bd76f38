"""What a search and a stage of 70B parameters, 1,000 domains and 15T tokens would take, and whether one driver can feed 10,000 workers.

    python benchmarks/scale.py plan [--domains 1000 --tokens 15T --layers 80 --width 8192 --gpus 1024]
    python benchmarks/scale.py fan-out [--workers 10000 --tasks 30000]
    python benchmarks/scale.py fit [--domains 16 32 64]

`plan` asks the functions that `opmix validate` and the ledger ask; nothing of it is measured except where it says seconds. `fan-out` is the
real `fan_out` and the real executor of jobs on a disk, with an engine that only pretends to start them: time is simulated, the driver's is
measured.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from opmix.compute.flops import ModelShape
from opmix.compute.memory import watch_memory
from opmix.execution.attempts import JobNote
from opmix.execution.fan_out import fan_out
from opmix.execution.jobs import Job, JobExecutor, Over
from opmix.execution.tasks import Task, file_of
from opmix.progress import Silent
from opmix.runs.store import RunStore, fingerprint
from opmix.settings import number

PEAK, USE = 989e12, 0.4  # bf16 FLOPs a second of an H100 (its data sheet, dense), and the share that training reaches
READ = 2e9  # bytes a second that a node reads of a shared store


class Engine:
    """Pretends to start jobs: each takes a while of simulated time, some die, some are slow, nodes are lost with all that they do.

    Args:
        folder: The run folder; records are written as a task's process would.
        nodes: Of eight workers each.
        seed: Of everything.
    """

    kind, outlives, poll_seconds = "simulated", True, 1e-9
    median, spread = 1200.0, 0.1  # seconds of a task, lognormal
    dies, slow, times = 0.02, 0.01, 5.0  # shares of jobs, and how much slower
    lost_every = 300.0  # seconds between two nodes that are lost
    polls = 5.0  # seconds of simulated time between two questions

    def __init__(self, folder: Path, nodes: int, seed: int) -> None:
        self.folder, self.nodes, self.random = folder, nodes, random.Random(seed)
        self.now, self.next_loss = 0.0, self.lost_every
        self.ends: list[tuple[float, int]] = []
        self.jobs: dict[int, tuple[Job, bool, int]] = {}
        self.over_now: dict[str, Over] = {}
        self.seen: Counter[str] = Counter()
        self.own = self.own_cpu = 0.0
        """Seconds that pretending took, to be taken off the driver's."""

    @contextmanager
    def pretending(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.own += time.perf_counter() - wall
        self.own_cpu += time.process_time() - cpu

    def submit(self, job: Job) -> str:
        with self.pretending():
            number_of = self.seen["started"]
            self.seen["started"] += 1
            takes = self.median * self.random.lognormvariate(0, self.spread)
            if self.random.random() < self.slow:
                takes *= self.times
                self.seen["slow"] += 1
            dies = self.random.random() < self.dies
            if dies:
                takes *= self.random.random()
            heapq.heappush(self.ends, (self.now + takes, number_of))
            self.jobs[number_of] = (job, dies, self.random.randrange(self.nodes))
            file_of(self.folder, job.name, "progress").write_text('{"task": "a probe", "done": 1, "total": 2}')
        return str(number_of)

    def over(self, jobs: Mapping[str, JobNote]) -> dict[str, Over]:
        found: dict[str, Over] = {}
        with self.pretending():
            self.now += self.polls
            while self.ends and self.ends[0][0] <= self.now:
                self._end(heapq.heappop(self.ends)[1], found)
            while self.next_loss <= self.now:
                self.next_loss += self.lost_every
                node = self.random.randrange(self.nodes)
                self.seen["nodes lost"] += 1
                for number_of in [n for n, (_, _, where) in self.jobs.items() if where == node]:
                    self._end(number_of, found, "its node was lost")
        return found

    def _end(self, number_of: int, found: dict[str, Over], lost: str | None = None) -> None:
        if number_of not in self.jobs:  # its node was lost before
            return
        job, dies, node = self.jobs.pop(number_of)
        file_of(self.folder, job.name, "progress").unlink(missing_ok=True)
        error = lost or ("its process was killed by signal 9" if dies else None)
        self.seen["died" if error else "done"] += 1
        if error is None:
            inputs = {"task": job.name}
            record = {"name": job.name, "fingerprint": fingerprint(inputs), "inputs": inputs, "result": {"flops": 1.0}}
            (self.folder / "steps" / f"{job.name}.json").write_text(json.dumps(record))
        found[job.name] = Over(error=error, place=f"node {node}")

    def check(self) -> str:
        return ""

    def cancel(self, jobs: Mapping[str, JobNote]) -> None:
        self.seen["cancelled"] += len(jobs)

    def close(self) -> None:
        pass


class Counted(Silent):
    """Counts what people would be told."""

    def __init__(self) -> None:
        self.notes: Counter[str] = Counter()

    def note(self, text: str) -> None:
        if "begun again" in text:  # stragglers are told by a clock, which here is not theirs
            self.notes["begun again"] += 1


def simulated(workers: int, tasks: int, seed: int, folder: Path) -> dict[str, Any]:
    """Everything done by that many workers; what it took of the driver."""
    (folder / "steps").mkdir(parents=True)
    wanted = [
        Task(name=f"probe-{n:05d}", key=fingerprint({"task": f"probe-{n:05d}"}), kind="probe", payload={"number": n})
        for n in range(tasks)
    ]
    engine, told = Engine(folder, max(1, workers // 8), seed), Counted()
    with RunStore(folder) as store:
        peak, memory = watch_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, busy = time.perf_counter(), time.process_time()
        results = fan_out(store, wanted, JobExecutor(engine, workers, late=0.0), progress=told, tries=10)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        high = peak()
        again = time.perf_counter()
        fan_out(store, wanted, JobExecutor(engine, workers, late=0.0), progress=told, tries=10)
        again = time.perf_counter() - again
    assert len(results) == tasks
    ideal = tasks * engine.median / workers
    return {
        "workers": workers,
        "tasks": tasks,
        **engine.seen,
        "told": dict(told.notes),
        "simulated_hours": engine.now / 3600,
        "ideal_hours": ideal / 3600,
        "driver_seconds": wall - engine.own,
        "driver_cpu_seconds": busy - engine.own_cpu,
        "driver_cpu_ms_a_start": 1e3 * (busy - engine.own_cpu) / engine.seen["started"],
        "driver_cpu_share_of_the_run": (busy - engine.own_cpu) / engine.now,
        "peak_mb": high / 2**20,
        "started_with_mb": memory / 2**10,
        "found_again_seconds": again,
    }


def fits(domains: list[int]) -> None:
    """CPU seconds of the law in effective tokens on probes of that many domains, looked at thrice, and how they grow."""
    from law_speed import effective, looks

    before: tuple[int, float] | None = None
    for number_of in domains:
        told = looks(number_of, 0)
        started, peak = time.process_time(), watch_memory()
        effective(*told)
        seconds = time.process_time() - started
        power = "" if before is None else f", power {np.log(seconds / before[1]) / np.log(number_of / before[0]):.1f}"
        print(f"{number_of} domains: {seconds:.2f} s of CPU{power}, {peak() / 2**20:.0f} MB", flush=True)
        before = number_of, seconds


def shape_of(layers: int, width: int) -> tuple[ModelShape, int, int]:
    """A Llama of that size without weights; its parameters, and those of a probe.

    Heads of 128, eight of keys and values, 3.5 times as wide inside, a vocabulary of 128,256.
    """
    from transformers import LlamaConfig

    from opmix.models.layers import model_shape, parameter_counts
    from opmix.models.load import empty_model
    from opmix.probes.kinds import probe_weights
    from opmix.probes.settings import ProbeSettings

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    model = empty_model(config)
    return model_shape(model), parameter_counts(model).total, probe_weights(ProbeSettings(), model).kept


def plan(domains: int, tokens: int, layers: int, width: int, gpus: int) -> None:
    """Print the tables of docs/scale.md."""
    from opmix.config import parse_config
    from opmix.data.periodic import plan_periodic
    from opmix.mixing.mixture import Mixture
    from opmix.mixture_search.estimate import estimate_search

    shape, parameters, adapter = shape_of(layers, width)
    names, length, rows = [f"domain-{n:04d}" for n in range(domains)], 4096, 4096
    told = {
        "model": "m",
        "domains": {n: n for n in names},
        "budget": tokens,
        "sequence_length": length,
        "trainer": {"batch": rows, "micro_batch": 1},
    }
    speed = gpus * PEAK * USE
    stage = tokens * shape.train(length)
    bf16 = 2.0 * parameters
    print(f"model: {parameters / 1e9:.1f}B parameters, adapters of a probe {adapter / 1e6:.0f}M")
    print(
        f"stage: {stage:.2e} FLOPs, {hours(stage / speed)} on {gpus} GPUs at {USE:.0%} of {PEAK / 1e12:.0f} TFLOP/s\n"
    )
    print(
        "| search | probes | steps each | points | probe tokens | evaluated tokens | FLOPs | of the stage | wall | planned in |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    cases = {"all domains weighed": {}, "one new domain": {"old_mixture": dict.fromkeys(names[:-1], 1 / (domains - 1))}}
    for name, more in cases.items():
        before = time.perf_counter()
        config = parse_config({**told, **more})
        old = None if config.old_mixture is None else Mixture.of(config.old_mixture)
        found = estimate_search(config, old)
        seconds = time.perf_counter() - before
        flops = found.cost(shape, length, adapter_parameters=adapter).total("flops")
        print(
            f"| {name} | {found.num_probes:,} | {config.probe_settings.num_steps} | {found.num_points:,} | {found.probe_tokens:.2e} | "
            f"{found.proxy_tokens:.2e} | {flops:.2e} | {flops / stage:.2%} | {hours(flops / speed)} | {seconds:.1f} s |"
        )
        probes = found.num_probes
        held = config.proxies.eval_sequences * domains
        print_needs(name, probes, found.num_points, held, adapter, bf16, gpus)
    before, peak = time.perf_counter(), watch_memory()
    schedule = plan_periodic(
        Mixture.of(dict.fromkeys(names, 1 / domains)), tokens // length, dict.fromkeys(names, 10**10), seed=0
    )
    made = time.perf_counter() - before
    before = time.perf_counter()
    schedule.at(np.arange(len(schedule) - 8192, len(schedule)))
    looked = time.perf_counter() - before
    print(
        f"\nthe stage's plan: {len(schedule):.2e} sequences, made in {made:.1f} s, 8,192 look-ups at its end in {looked:.2f} s"
    )
    print(f"peak of this process {peak() / 2**20:.0f} MB")
    read = hours(tokens * 4 / READ / (gpus / 8))
    print(f"token ids on disk: {4 * tokens / 1e12:.0f} TB (uint32), read once: {read} at 2 GB/s a node")


def print_needs(name: str, probes: int, points: int, held: int, adapter: int, bf16: float, gpus: int) -> None:
    """Memory, network and storage of one search."""
    tasks = probes + min(gpus, points)
    facts = {
        "a probe's checkpoint (adapter, two moments, float32)": 12.0 * adapter,
        "all adapters kept": 4.0 * adapter * probes,
        "weights read by all tasks (bf16 each)": bf16 * tasks,
        "adapters that each part of the sweep holds": 4.0 * adapter * probes,
        "table of losses by sequence": 8.0 * (points + 1) * held,
    }
    print(f"<!-- {name}: " + "; ".join(f"{what}: {size(value)}" for what, value in facts.items()) + " -->")


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.0f} days"


def size(value: float) -> str:
    for unit, amount in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= amount:
            return f"{value / amount:.3g} {unit}"
    return f"{value:.3g} B"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    planned = parts.add_parser("plan")
    for option, default in (("domains", 1000), ("tokens", "15T"), ("layers", 80), ("width", 8192), ("gpus", 1024)):
        planned.add_argument(f"--{option}", type=number, default=number(default))
    fanned = parts.add_parser("fan-out")
    for option, default in (("workers", 10_000), ("tasks", 30_000), ("seed", 0)):
        fanned.add_argument(f"--{option}", type=int, default=default)
    parts.add_parser("fit").add_argument("--domains", type=int, nargs="+", default=[16, 32, 64])
    args = vars(parser.parse_args())
    if (part := args.pop("part")) in ("plan", "fit"):
        {"plan": plan, "fit": fits}[part](**args)
        return
    folder = Path(tempfile.mkdtemp(prefix="opmix-scale-", dir=os.environ.get("TMPDIR")))
    try:
        print(json.dumps(simulated(folder=folder / "run", **args), indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
