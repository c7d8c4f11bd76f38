"""Wrong values and damaged files for every verb: how each call ends, counted.

    python benchmarks/hostile.py [--scale 1.0] [--runs 40] [--seed 7] [--show]

The same seeded calls on whatever opmix is imported, so two commits can be compared (PYTHONPATH=OTHER/src). Calls end in a result, in an
error of opmix's own, in a traceback or in nothing (hang: what writes no more); `validate` may also call ready what then fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

SECONDS, WAITING = 60, 300
"""Of its own work, and of waiting for something, after which a call counts as hanging."""

NUMBERS = [float("nan"), float("inf"), -float("inf"), 10**400, 2**70, 0, -1, 1.5, True, None, "1e3", "1e999", "fast"]
TEXTS = ["", "x" * 5000, "~nosuchuser/x", "a\x00b", "[/red]", "package://stdlib/../../x", "../x", "name\nname"]
SHAPES: list[Any] = [[], [[]], {}, {"": 1}, {1: 2}, {"web": None}, {"web": "x"}, {"web": 0.9, "code": 0.9}, [["web"]]]
VALUES = [*NUMBERS, *TEXTS, *SHAPES]

TRAINER = ["learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "adam_epsilon", "optim"]
SHARED = [
    *[("trainer", key) for key in TRAINER],
    *[
        ("probes", key)
        for key in ("steps", "rank", "alpha", "dropout", "share", "target_modules", "kind", "first_look")
    ],
    *[("proxies", key) for key in ("count", "eval_sequences", "backend", "batch_tokens")],
    *[("solve", key) for key in ("objective", "weights", "kl", "prior", "floors", "ceilings", "fixed", "groups")],
    *[("solve", "max_epochs"), ("solve", "loss_limits"), ("solve", "groups", "g")],
    *[("decision", key) for key in ("confidence", "min_gain", "draws", "verify", "interval_level")],
    *[("domains", "web", key) for key in ("train", "valid", "max_epochs", "holdout", "kind", "chat")],
    *[("domains", "web", "train", key) for key in ("paths", "format", "field", "dtype", "split")],
    *[(key,) for key in ("sequence_length", "trainer", "probes", "proxies", "solve", "decision", "num_proc", "sdft")],
    *[(key,) for key in ("domains", "model", "old_mixture", "huber_delta", "cache_dir", "document_mask")],
    *[("model", key) for key in ("tokenizer", "dtype", "device", "attn_implementation", "chat_template")],
]
SEARCH_KEYS = [*SHARED, ("budget",), ("budget", "tokens"), ("new_domains",), ("objective",), ("seed",)]
STAGE = ["name", "domains", "add", "drop", "tokens", "mixture", "prefix", "remix_every", "replay", "optimizer"]
STAGE += ["objective", "schedule", "trainer", "probes", "proxies", "solve", "decision", "prefix_mixture"]
LIFE_KEYS = [
    *SHARED,
    *[("stages", 1, key) for key in STAGE],
    *[("stages", 1, *path) for path in SHARED if len(path) > 1 and path[0] in ("trainer", "probes", "solve")],
    *[("evaluation", key) for key in ("sequences", "every", "tasks", "harness")],
    *[(key,) for key in ("stages", "seeds", "schedule", "keep", "checkpoint_every", "evaluation", "chat_template")],
]
ARCHITECTURE_KEYS = [("architecture", key) for key in ("model_type", "hidden_size", "num_attention_heads")]
ARCHITECTURE_KEYS += [("architecture", "num_hidden_layers"), ("tokenizer", "vocab_size"), ("tokenizer",)]
COMPARE_KEYS = [
    ("methods",),
    ("methods", "uniform"),
    ("methods", "op_mix"),
    ("methods", "op_mix", "stage"),
    ("reference",),
]
COMPARE_KEYS += [("methods", "regmix"), ("methods", "regmix", "runs"), ("methods", "uniform", "method"), ("stages",)]

SEARCH: dict[str, Any] = {
    "model": "llama",
    "domains": {"web": "text/web.jsonl", "code": "text/code.jsonl"},
    "budget": {"tokens": 20000},
    "sequence_length": 64,
    "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
    "probes": {"steps": 2},
    "proxies": {"eval_sequences": 4},
    "decision": {"draws": 20},
    "cache_dir": "cache",
}
LIFE: dict[str, Any] = {
    **{key: value for key, value in SEARCH.items() if key != "budget"},
    "old_mixture": {"web": 1.0},
    "evaluation": {"sequences": 4},
    "stages": [
        {"name": "one", "tokens": 1000, "domains": ["web", "code"], "mixture": "uniform"},
        {"name": "two", "tokens": 1000, "mixture": "search"},
    ],
}
SCRATCH = {
    **{key: value for key, value in LIFE.items() if key not in ("model", "old_mixture")},
    "architecture": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
    "tokenizer": {"vocab_size": 300, "documents": 20},
    "stages": LIFE["stages"][:1],
}
COMPARE = {**LIFE, "methods": {"uniform": {}, "op_mix": {}}}

HEADER, ROWS = (
    "run,ratio_a,ratio_b,loss_x",
    [f"r{i},{i / 10},{1 - i / 10},{3 - (i / 10 - 0.4) ** 2}" for i in range(11)],
)
CELLS = ["", "nan", "inf", "-1", "1e999", "x", "1,5", '"', "\x00", "=1+1", "0.5,0.5", "9" * 400]
NAMES = [
    "",
    "ratio_a",
    "loss_x",
    "loss_x ",
    "ratio_[en]",
    "loss_\x1b[31m",
    "Unnamed: 0",
    "ratio_" + "n" * 300,
    "loss_acc",
]
SPOILED = [b"", b"[]", b"{}", b"null", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b'{"schema": 1e999}', b"<html>"]
FILES = ["mixture.json", "manifest.json", "law_draws.json", "timing.json", "tables/proxies.csv", "data.json", "lock"]
PLACES = [
    "",
    ".",
    "nowhere",
    "x" * 300,
    "x" * 5000,
    "~nosuchuser/x",
    "/dev/null",
    "/proc/self/mem",
    "a\nb",
    "[/red]",
    "llama",
]


class HangError(BaseException):
    """A call that does not come back."""


class TimeIsUpError(Exception):
    """No further call is begun."""


def hangs(*_: Any) -> None:
    """Handler of the alarms."""
    raise HangError


def with_value(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The content with one value replaced; shorts of models and domains are written out on the way."""
    changed = here = deepcopy(content)
    for key in path[:-1]:
        if isinstance(here, list):
            here = here[key]
            continue
        if isinstance(here.get(key), str):
            here[key] = {{"model": "name", "train": "paths"}.get(str(key), "train"): here[key]}
        elif not isinstance(here.get(key), dict | list):
            here[key] = {}
        here = here[key]
    here[path[-1]] = value
    return changed


def configurations(draw: random.Random, keys: list[Any], content: Any, verb: str, count: int) -> Iterator[Any]:
    """`validate` on files with one wrong value each, with the verb that a ready one is for."""
    for path, value in draw.sample([(p, v) for p in keys for v in VALUES], min(count, len(keys) * len(VALUES))):
        yield "validate " + verb, yaml.safe_dump(with_value(content, path, value), allow_unicode=True), verb


def tables(draw: random.Random, count: int) -> Iterator[str]:
    """Tables of runs with one thing wrong."""
    for _ in range(count):
        header, rows = HEADER.split(","), [row.split(",") for row in ROWS]
        kind = draw.randrange(5)
        if kind == 0:
            rows[draw.randrange(len(rows))][draw.randrange(4)] = draw.choice(CELLS)
        elif kind == 1:
            header[draw.randrange(4)] = draw.choice(NAMES)
        elif kind == 2:
            rows = rows[: draw.randrange(5)]
        elif kind == 3:
            rows[draw.randrange(len(rows))] = draw.choice(
                [[], ["r0"], ["r0", "1", "0", "3", "4"], ["r1", "0", "1", "2"]]
            )
        else:
            column, value = draw.randrange(4), draw.choice(CELLS)
            rows = [[value if i == column else cell for i, cell in enumerate(row)] for row in rows]
        yield "\n".join(",".join(row) for row in [header, *rows])


def at_work(folder: Path) -> bool:
    """Whether anything below a run folder was written within the last half minute."""
    return any(time.time() - path.stat().st_mtime < 30 for path in folder.rglob("*"))


class Walk:
    """Calls, and how they ended; `bad`: in a traceback, a hang, or ready but failed.

    Args:
        app: The command line's.
        show: Print what ends badly.
        until: Of the monotonic clock: no call begins after it (TimeIsUpError).
    """

    def __init__(self, app: Any, show: bool, until: float = float("inf")) -> None:
        self.app, self.show, self.runner, self.until = app, show, CliRunner(), until
        self.ends, self.bad = Counter[tuple[str, str]](), list[str]()

    def call(self, group: str, *arguments: str) -> str:
        """Count how a call ends."""
        end = self.ending(*arguments)
        self.count(group, end.partition(":")[0], f"{' '.join(arguments)[:200]!r}: {end}")
        return end

    def count(self, group: str, kind: str, told: str) -> None:
        self.ends[group, kind] += 1
        if kind in ("traceback", "hang", "ready, but failed"):
            self.bad.append(f"{kind}: {group}: {told}")
            if self.show:
                print(self.bad[-1], flush=True)

    def ending(self, *arguments: str) -> str:
        """`accepted`, `clear error`, `traceback: ...` or `hang`."""
        if time.monotonic() > self.until:
            raise TimeIsUpError
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAITING)
        try:
            result = self.runner.invoke(self.app, list(arguments))
        except HangError:
            return "hang"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        error = result.exception
        if isinstance(error, HangError):
            return "hang"
        if error is None or (isinstance(error, SystemExit) and error.code in (0, None)):
            return "accepted"
        ours = isinstance(error, SystemExit) or type(error).__module__ == "opmix.errors"
        said = (str(error).splitlines() or [""])[0][:160]
        return f"clear error: {said}" if ours else f"traceback: {type(error).__name__}: {said}"


def walk(at: Walk, scale: float, runs: int, seed: int) -> None:
    """All groups of calls in a folder that holds a model and text."""
    draw = random.Random(seed)

    def some(count: int) -> int:
        return max(1, round(count * scale))

    plans = [
        *configurations(draw, SEARCH_KEYS, SEARCH, "search", some(250)),
        *configurations(draw, LIFE_KEYS, LIFE, "run", some(250)),
        *configurations(draw, ARCHITECTURE_KEYS, SCRATCH, "run", some(50)),
        *configurations(draw, COMPARE_KEYS, COMPARE, "compare", some(80)),
    ]
    ready = []
    for group, text, verb in plans:
        Path("c.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        if at.call(group, "validate", "c.yaml") == "accepted":
            ready.append((text, verb))
    for number, (text, verb) in enumerate(draw.sample(ready, min(runs, len(ready)))):
        Path("c.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        end = at.ending(verb, "c.yaml", "--out", f"out-{number}")
        kind = {"accepted": "accepted", "hang": "hang"}.get(end, "ready, but failed")
        if kind == "hang" and at_work(Path(f"out-{number}")):
            kind = "accepted"  # a thousand steps were asked for, and are trained
        usual = yaml.safe_dump({"search": SEARCH, "run": LIFE}.get(verb, COMPARE))
        changed = [line for line in text.splitlines() if line not in usual]
        at.count(f"{verb} of what is ready", kind, f"{end}; {changed[:6]}")
        shutil.rmtree(f"out-{number}", ignore_errors=True)
    for text in tables(draw, some(120)):
        Path("t.csv").write_text(text, encoding="utf-8")
        at.call("fit", "fit", "t.csv", "--out", "fit-run")
        shutil.rmtree("fit-run", ignore_errors=True)
    Path("t.csv").write_text("\n".join([HEADER, *ROWS]))
    at.ending("fit", "t.csv", "--out", "sound")
    verbs = [["status"], ["report"], ["verify"], ["export", "--to", "axolotl"]]
    for name, content, (verb, *options) in draw.sample(
        [(n, c, v) for n in FILES for c in SPOILED for v in verbs], some(160)
    ):
        shutil.copytree("sound", "damaged")
        (Path("damaged") / name).write_bytes(content)
        at.call("damaged folders", verb, "damaged", *options)
        shutil.rmtree("damaged", ignore_errors=True)
    for verb in (
        "init",
        "status",
        "report",
        "verify",
        "validate",
        "search",
        "run",
        "compare",
        "fit",
        "export",
        "discover",
    ):
        for place in draw.sample(PLACES, min(some(9), len(PLACES))):
            options = {"export": ["--to", "axolotl"], "init": ["--out", "made.yaml"], "discover": ["--out", "d"]}
            at.call("odd places", verb, place, *options.get(verb, []))
            Path("made.yaml").unlink(missing_ok=True)


def prepared(folder: Path) -> None:
    """A tiny model and two domains."""
    from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    write_toy_domains(folder / "text", ["web", "code"], 120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the calls")
    parser.add_argument("--runs", type=int, default=40, help="of what validate calls ready, how many are run")
    parser.add_argument("--seed", type=int, default=7, help="of which calls are drawn")
    parser.add_argument("--show", action="store_true", help="print calls that end badly")
    chosen = parser.parse_args()

    for number in (signal.SIGALRM, signal.SIGVTALRM):
        signal.signal(number, hangs)
    from opmix.cli.app import app

    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        os.environ["XDG_CACHE_HOME"] = place
        prepared(Path(place))
        at = Walk(app, chosen.show)
        walk(at, chosen.scale, chosen.runs, chosen.seed)
        os.chdir("/")
    ends = at.ends
    kinds = ["clear error", "traceback", "hang", "ready, but failed", "accepted"]
    groups = list(dict.fromkeys(group for group, _ in ends))
    print("\n| calls | all | " + " | ".join(kinds) + " |\n|---|---|" + "---|" * len(kinds))
    for group in [*groups, "all"]:
        row = [sum(n for (g, k), n in ends.items() if group in (g, "all") and k == kind) for kind in kinds]
        print(f"| {group} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    print(json.dumps({f"{group}/{kind}": count for (group, kind), count in sorted(ends.items())}))


if __name__ == "__main__":
    main()
