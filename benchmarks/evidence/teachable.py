"""The third phase on a model that can be taught: two skills after SmolLM2-135M-Instruct, by SFT and by self-distillation.

    python benchmarks/evidence/teachable.py run --model SmolLM2-135M-Instruct.Q4_1.gguf --data shared/data --workers 8
    python benchmarks/evidence/teachable.py run --quick --out /tmp/q   # toy model and conversations: a rehearsal on a CPU, under a minute
    python benchmarks/evidence/teachable.py run --small --model … --data shared/data --workers 2 --device cpu    # hours, two cores
    python benchmarks/evidence/teachable.py analyse [--small]          # the tables, and results/teachable[_small].json

On a GPU, from the root of the repository (every arm is a process, and takes up to 12 GB of it; the records are a few kilobytes each):

    cp -r benchmarks/evidence/results/teachable runs/evidence/teachable/records   # what is known already
    python benchmarks/evidence/teachable.py run --model $GGUF --data $DATA --out runs/evidence/teachable --device cuda --workers 6
    cp -r runs/evidence/teachable/records runs/evidence/teachable/logs $OUT/

Resumable: an arm whose record is there is not run again, one that was interrupted goes on from its last finished step. `--arms` takes
names or beginnings of names (`--arms alone replay-sft`). `analyse` reads the records kept in the repository unless it is told `--out`.
The arms, in groups:

    base, shown           the checkpoint, judged; and asked in several ways with the answer before it: the best way is the teacher's
    alone-OBJECTIVE-RATE  the first skill alone, at every learning rate; the one of least `valid` loss is used from then on
    sequential, replay, opmix - sft, sdft      two skills after another: new data only; 10 % of what was before; OP-Mix decides
    frozen-sdft           sequential, taught by the frozen copy of the stage's start instead of weights that follow
    opmix-sft-half, -quarter                   OP-Mix with less to spend, searches and stages alike
    share25, share60 - sft, sdft               the first stage at other shares of the new skill: what a search's law should foretell
    why-*                 the first skill alone by self-distillation with one setting changed

All stages have the same steps and supervised tokens.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from teachable_world import (
    ASKS,
    FIRST,
    OLD,
    RATES,
    SECOND,
    SKILLS,
    SMALL,
    TINY,
    Sizes,
    World,
    device_facts,
    distillation,
    read,
)

import opmix
from opmix.cli.console import quiet_libraries
from opmix.models.device import default_device
from opmix.results.life import LifeFile
from opmix.runs.files import write_json, write_text
from opmix.training.settings import DistillationSettings

SHARES = {"sequential": 1.0, "replay": 0.9, "share60": 0.6, "share25": 0.25}
"""Of the new skill, where no search decides."""
WHY: dict[str, dict[str, Any]] = {
    "skip3": {"skip_tokens": 3},
    "cool": {"temperature": 0.5},
    "live": {"teacher": "live"},
    "frozen": {"teacher": "frozen"},
    "words": {"demonstration": ASKS["words"]},
}
REHEARSED = ("sequential-sft", "opmix-sft-quarter", "replay-sdft")
"""Of `--quick`, with what they follow."""
KEPT = Path(__file__).parent / "results"
"""Holds `teachable` and `teachable_small`: records of the arms that have been run."""
FRACTIONS = {"": 1.0, "-half": 0.5, "-quarter": 0.25}


@dataclass(frozen=True)
class Arm:
    """One way to live, or a part of it."""

    name: str
    objective: str
    how: str
    """`search`, or a key of SHARES."""
    stages: int = 2
    rate: float | None = None
    """None: the one that `alone` chose."""
    fraction: float = 1.0
    sdft: tuple[tuple[str, Any], ...] = ()

    def follows(self, world: World) -> list[str]:
        """Names of arms that must be done before."""
        if self.stages == 0:
            return [] if self.how == "base" else ["base"]
        swept = [f"alone-{self.objective}-{r:g}" for r in world.rates(self.objective) if self.rate is None]
        return ["base", *(["shown"] if self.objective == "sdft" else []), *swept]

    @property
    def weight(self) -> float:
        """About what it costs, to begin with the longest."""
        return (
            (3.0 if self.objective == "sdft" else 1.0)
            * (2.0 if self.how == "search" else 1.0)
            * self.stages
            * self.fraction
        )


def all_arms() -> dict[str, Arm]:
    """By name."""
    found = [Arm(f"alone-{o}-{r:g}", o, "sequential", stages=1, rate=r) for o, rates in RATES.items() for r in rates]
    for objective in RATES:
        found += [Arm(f"{how}-{objective}", objective, how) for how in ("sequential", "replay")]
        found += [Arm(f"{how}-{objective}", objective, how, stages=1) for how in ("share25", "share60")]
        ends = FRACTIONS if objective == "sft" else {"": 1.0}
        found += [Arm(f"opmix-{objective}{end}", objective, "search", fraction=f) for end, f in ends.items()]
    found += [Arm("frozen-sdft", "sdft", "sequential", sdft=(("teacher", "frozen"),))]
    found += [Arm(f"why-{n}", "sdft", "sequential", stages=1, sdft=tuple(c.items())) for n, c in WHY.items()]
    begin = [Arm(name, "sft", name, stages=0, rate=0.0) for name in ("base", "shown")]
    return {a.name: a for a in [*begin, *found]}


ARMS = all_arms()


def record_of(world: World, arm: str, seed: int) -> Path:
    return world.out / "records" / f"{arm}-seed{seed}.json"


def chosen_rate(world: World, objective: str, seed: int) -> float:
    """The rate of least `valid` loss of the first skill."""
    tried = {r: read(record_of(world, f"alone-{objective}-{r:g}", seed)) for r in world.rates(objective)}
    return min(tried, key=lambda r: tried[r]["stages"][0]["judged"]["valid"][FIRST])


def chosen_ask(world: World, seed: int) -> str:
    """How the checkpoint, shown the answer, is right most often over both skills: that is what a teacher needs."""
    shown = read(record_of(world, "shown", seed))["shown"]
    return max(ASKS, key=lambda ask: sum(s["right"] / s["total"] for s in shown[ask].values()))


def life(world: World, arm: Arm, seed: int, rate: float, tokens: Sequence[int], ask: str | None) -> dict[str, Any]:
    """What `opmix.run` is told."""
    sizes, stages, before = world.sizes, [], {OLD: 1.0}
    for name, budget in zip((FIRST, SECOND)[: arm.stages], tokens, strict=False):
        stage: dict[str, Any] = {"name": name, "add": [name], "tokens": max(1, round(budget * arm.fraction))}
        if arm.how != "search":
            share = SHARES[arm.how]
            before = {name: share, **{n: (1 - share) * s for n, s in before.items() if share < 1}}
            stage["mixture"] = before
        stages.append({**stage, "objective": arm.objective})
    # Writing is one call of the model a token, whatever the batch: a student's rows of a step all at once, if memory lasts.
    micro = sizes.batch if arm.objective == "sdft" else max(1, sizes.batch // 2)
    told = {"demonstration": ASKS[ask] if ask else "", **dict(arm.sdft)}
    return {
        "model": {"name": str(world.start.resolve()), "device": world.device},
        "old_mixture": {OLD: 1.0},
        "seeds": [seed],
        "domains": {n: f for n, f in world.files.items() if n in (OLD, FIRST, SECOND)[: arm.stages + 1]},
        "sequence_length": sizes.length,
        "stages": stages,
        "sdft": distillation(sizes, **told),
        "trainer": {
            "learning_rate": rate,
            "batch": sizes.batch,
            "micro_batch": micro,
            "weight_decay": 0.0,
            "gradient_checkpointing": world.device.startswith("cuda"),  # a CPU has memory, and no time
            "bf16": world.reading is not None or world.device.startswith("cuda"),
        },
        "probes": {"steps": max(1, round(sizes.probe_steps * arm.fraction)), "adaptive": False},
        "proxies": {"eval_sequences": max(2, sizes.held_out // 2)},
        "decision": {"verify": False},
        "evaluation": {"sequences": 8},
        "checkpoint_every": 10**9,
        "cache_dir": str((world.out / "cache").resolve()),
    }


def run_arm(world: World, arm: Arm, seed: int, first_seed: int) -> None:
    """Run an arm to its record."""
    started = time.perf_counter()
    found: dict[str, Any] = {"arm": arm.name, "seed": seed, "facts": world.facts, "device": device_facts(world.device)}
    if arm.name == "base":
        world.begin()
        for text in ASKS.values():  # once, not by every process
            world.chats((OLD, FIRST, SECOND), DistillationSettings(**distillation(world.sizes, demonstration=text)))
        found |= {"tokens": world.stage_tokens(), "judged": world.judge(world.start)}
    elif arm.name == "shown":
        found["shown"] = world.shown()
    else:
        ask = chosen_ask(world, first_seed) if arm.objective == "sdft" else None
        rate = chosen_rate(world, arm.objective, first_seed) if arm.rate is None else arm.rate
        # Where the first stage is an `alone` arm's, it is that one: the second is appended to it.
        alone = arm.how == "sequential" and not arm.sdft
        home = (
            world.out / "lives" / (f"alone-{arm.objective}-{rate:g}-seed{seed}" if alone else f"{arm.name}-seed{seed}")
        )
        told = life(world, arm, seed, rate, read(record_of(world, "base", first_seed))["tokens"], ask)
        opmix.run(told, out=home, progress=None)
        lived = LifeFile.read(home).json()["seeds"][str(seed)]["stages"]
        stages = []
        for number, stage in enumerate(lived[: arm.stages]):
            folder = next(home.glob(f"seed-{seed}/*-{stage['name']}"))
            stages.append(
                {
                    "name": stage["name"],
                    "mixture": stage["mixture"],
                    "tokens": stage["tokens"],
                    "cost": stage["cost"],
                    "searches": [read(p) for p in sorted(folder.glob("search-*/mixture.json"))],
                    "judged": world.judge(folder / "model", taught=tuple(SKILLS)[: number + 1]),
                    "number": number,
                }
            )
        found |= {
            "objective": arm.objective,
            "how": arm.how,
            "rate": rate,
            "ask": ask,
            "fraction": arm.fraction,
            "stages": stages,
        }
        if not alone:
            for model in home.glob("seed-*/*/model"):
                shutil.rmtree(model)
    write_json(record_of(world, arm.name, seed), {**found, "seconds": time.perf_counter() - started})


def wanted(args: argparse.Namespace, world: World) -> list[tuple[str, int]]:
    """Arms to be run, with seed; rates are swept with the first seed only."""
    left_out = {f"alone-{o}-{r:g}" for o, rates in RATES.items() for r in rates if r not in world.rates(o)}
    names = [n for n in ARMS if n not in left_out and (not args.arms or any(n.startswith(a) for a in args.arms))]
    needed = {f for n in names for f in ARMS[n].follows(world)}
    names = [n for n in ARMS if n in names or n in needed]
    first = args.seeds[0]
    return [(n, s) for s in args.seeds for n in names if s == first or (ARMS[n].rate is None)]


def run(args: argparse.Namespace, world: World) -> int:
    """Run all arms that have no record, `--workers` at a time, the longest first; returns how many failed or had to be left."""
    left = []
    for name, seed in wanted(args, world):
        record = record_of(world, name, seed)
        if not record.exists():
            left.append((name, seed))
        elif read(record)["facts"] != world.facts:
            raise SystemExit(
                f"{record}: made with {read(record)['facts']}, now {world.facts}; expected the same sizes; use another --out"
            )
    say(
        f"{len(left)} arms to run, {args.workers} at a time; about {estimate(world, left, args.workers):.0f} s on an H100"
    )
    os.environ |= {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.workers)),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # or what processes keep for batches of other lengths fills the GPU
    }
    running: dict[Future[float], tuple[str, int]] = {}
    failed, first = 0, args.seeds[0]
    with pool_of(args.workers) as pool:
        while left or running:
            free = args.workers - len(running)
            able = [(n, s) for n, s in left if all(record_of(world, f, first).exists() for f in ARMS[n].follows(world))]
            for key in sorted(able, key=lambda k: -ARMS[k[0]].weight)[:free]:
                left.remove(key)
                running[pool.submit(timed_arm, world, *key, first)] = key
            if not running:
                say(f"left out, because what they follow failed: {', '.join(n for n, _ in left)}")
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, seed = running.pop(future)
                failed += future.exception() is not None
                say(
                    f"{name}, seed {seed}: "
                    + (repr(future.exception()) if future.exception() else f"{future.result():.0f} s")
                )
    return failed + len(left)


def pool_of(workers: int) -> Executor:
    """Processes that load torch once and then run arm after arm; one worker is this process."""
    return InThisProcess() if workers == 1 else ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


class InThisProcess(Executor):
    """Runs what it is given at once."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:  # an arm that fails stops no other
            future.set_exception(error)
        return future


def timed_arm(world: World, name: str, seed: int, first_seed: int) -> float:
    """Run an arm, its troubles written to `logs/`; returns its seconds."""
    quiet_libraries()
    started = time.perf_counter()
    try:
        run_arm(world, ARMS[name], seed, first_seed)
    except Exception:
        write_text(world.out / "logs" / f"{name}-seed{seed}.txt", traceback.format_exc())
        raise
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return time.perf_counter() - started


def estimate(world: World, left: Sequence[tuple[str, int]], workers: int) -> float:
    """Seconds on an H100: 30 ms for each token that all rows of a step write, 0.35 s for learning from them, 45 s of an arm around it.

    Too little: of ten arms, six at a time and foretold to take 251 s, six were done after 250 and four not after 330."""
    sizes, total, longest = world.sizes, 0.0, 0.0
    for name, _ in left:
        arm = ARMS[name]
        step = 0.35 + (0.03 * sizes.answer if arm.objective == "sdft" else 0.0)
        steps = arm.stages * arm.fraction * (sizes.steps + (3 * sizes.probe_steps if arm.how == "search" else 0))
        total, longest = total + 45 + step * steps, max(longest, 45 + step * steps)
    sweep = 45 + sizes.steps * (0.35 + 0.03 * sizes.answer)
    return max(total / workers, longest + sweep)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "analyse"])
    parser.add_argument("--model", help=".gguf file or folder of SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="holds instruct/ and pretrain/")
    parser.add_argument(
        "--out", type=Path, help="default: runs/evidence/teachable[-small]; analyse: the records that are kept"
    )
    parser.add_argument("--arms", nargs="+", default=[], help="names, or beginnings of names")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default=str(default_device()))
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    parser.add_argument("--quick", action="store_true", help="toy model and conversations, tiny sizes")
    parser.add_argument("--small", action="store_true", help="sizes for two cores of a CPU and a few hours")
    parser.add_argument("--results", type=Path, help="default: beside the records that are kept")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int)
    args = parser.parse_args()
    if args.quick and not args.arms:
        args.arms = list(REHEARSED)
    sizes = TINY if args.quick else SMALL if args.small else Sizes()
    for field in fields(Sizes):
        if getattr(args, field.name) is None:
            setattr(args, field.name, getattr(sizes, field.name))
    return args


def main() -> None:
    args = parsed()
    quiet_libraries()
    sizes = replace(Sizes(), **{f.name: getattr(args, f.name) for f in fields(Sizes)})
    world = World(
        out=args.out or Path("runs/evidence") / ("teachable-small" if args.small else "teachable"),
        sizes=sizes,
        device=args.device,
        data=None if args.quick else args.data,
        model=None if args.quick else args.model,
    )
    if args.verb == "analyse":
        from teachable_tables import analyse

        kept = KEPT / ("teachable_small" if args.small else "teachable")
        say(analyse(kept if args.out is None else args.out / "records", args.results or kept.with_suffix(".json")))
        return
    if not args.quick and (args.model is None or not Path(args.model).exists()):
        raise SystemExit(f"--model: {args.model}; expected the .gguf file or folder of SmolLM2-135M-Instruct")
    if not args.quick and not (args.data / "instruct").is_dir():
        raise SystemExit(f"--data: {args.data} has no instruct/; expected the folder of the shared data")
    raise SystemExit(min(run(args, world), 1))


if __name__ == "__main__":
    main()
