"""How many small faults the fast tests notice: a seeded sample of mutants of the numerical core, one at a time.

    python benchmarks/mutation.py --commit HEAD --sample 60 --seed 0 --out runs/mutation.json

A mutant changes one operator, constant, condition or returned value. It is killed if its module's own fast tests fail or take too long,
or else those of its folder. Prints the score and every survivor; the JSON holds both. Works in a git worktree of its own.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# What is mutated, below src/opmix, and the fast tests that should notice, below tests/unit.
TARGETS = {
    "mixing": ["mixing"],
    "methods/op_mix.py": ["methods/test_op_mix.py"],
    "probes/interpolation.py": ["probes/test_interpolation.py"],
    "data/sampler.py": ["data/test_sampler.py"],
    "data/chat": ["data"],
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
Mutation = tuple[int, str, Callable[[], None]]  # line, what changes, and how


def replaced(owner: Any, field: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, field, value)


def mutations_of(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    """Ways to change this node in place."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if new := COMPARISONS.get(type(op)):
                ops = [new() if j == i else other for j, other in enumerate(node.ops)]
                yield f"{type(op).__name__} -> {new.__name__}", replaced(node, "ops", ops)
    elif isinstance(node, ast.BinOp | ast.AugAssign) and (operator := ARITHMETIC.get(type(node.op))):
        yield f"{type(node.op).__name__} -> {operator.__name__}", replaced(node, "op", operator())
    elif isinstance(node, ast.BoolOp):
        new_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"{type(node.op).__name__} -> {type(new_op).__name__}", replaced(node, "op", new_op)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "-x -> +x", replaced(node, "op", ast.UAdd())
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "condition negated", replaced(node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield f"{node.value} -> {value}", replaced(node, "value", value)
    elif isinstance(node, ast.Return) and node.value is not None and not is_none(node.value):
        yield "return None", replaced(node, "value", ast.Constant(None))


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def code_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run: annotations, TYPE_CHECKING blocks and `__all__` left out."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from code_nodes(child)


def mutations(tree: ast.Module) -> list[Mutation]:
    return [(n.lineno, *m) for n in code_nodes(tree) for m in mutations_of(n) if hasattr(n, "lineno")]


Tests = tuple[str, ...]


def pool(tree: Path, targets: Sequence[str]) -> list[tuple[Path, int, list[Tests]]]:
    """Every mutant: its file, its number in the file, and the tests that should notice it, nearest first."""
    source, unit = tree / "src" / "opmix", tree / "tests" / "unit"
    tests_of: dict[Path, list[Tests]] = {}
    for target in sorted(targets):
        path = source / target
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            own = f"{file.relative_to(source).parts[0]}/test_{file.stem}.py"
            wider = tuple(t for t in TARGETS[target] if (unit / t).exists()) or (own.partition("/")[0],)
            tests_of[file] = list(dict.fromkeys([*([(own,)] if (unit / own).exists() else []), wider]))
    return [(f, i, t) for f, t in sorted(tests_of.items()) for i in range(len(mutations(ast.parse(f.read_text()))))]


def run_tests(tree: Path, tests: Tests) -> None:
    """Run the tests in this process and end it with pytest's exit code."""
    os.setsid()
    os.chdir(tree)
    sys.path.insert(0, str(tree / "src"))
    os.environ["PYTHONPATH"] = str(tree / "src")
    sys.dont_write_bytecode = True
    import pytest

    with Path(os.devnull).open("w") as silent:
        os.dup2(silent.fileno(), 1)
        os.dup2(silent.fileno(), 2)
        paths = [str(tree / "tests" / "unit" / t) for t in tests]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
        warned = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that the big imports bring along
        os._exit(int(pytest.main([*options, *warned, *paths])))


def tested(tree: Path, tests: Tests, seconds: float) -> str:
    """`passed`, `failed` or `timeout`: pytest in a fork of this process, which has the big imports behind it."""
    process = os.fork()
    if process == 0:
        try:
            run_tests(tree, tests)
        finally:
            os._exit(1)  # whatever it was: never on with the parent's work
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "timeout"


def import_big() -> None:
    """Import what most of a test's start-up goes to, once for all forks; not opmix, which changes, nor plugins, which pytest rewrites."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize  # noqa: F401
    import transformers.trainer  # noqa: F401


def examine(tree: Path, targets: Sequence[str], sample: int, seed: int, log: Callable[[str], object]) -> dict[str, Any]:
    everything = pool(tree, targets)
    chosen = sorted(random.Random(seed).sample(everything, min(sample, len(everything))), key=lambda m: (m[0], m[1]))
    limits: dict[Tests, float] = {}
    survivors, killed = [], 0
    for file, number, stages in chosen:
        for tests in stages:
            if tests not in limits:
                started = time.monotonic()
                if "passed" not in (
                    tested(tree, tests, 3600) for _ in range(2)
                ):  # a busy machine may have it fail once
                    sys.exit(f"the tests {', '.join(tests)} fail without any mutation")
                limits[tests] = 30 + 5 * (time.monotonic() - started)
        text = file.read_text()
        module = ast.parse(text)
        line, what, change = mutations(module)[number]
        change()
        file.write_text(ast.unparse(ast.fix_missing_locations(module)))
        outcome = "passed"
        for tests in stages:
            if outcome == "passed":
                outcome = tested(tree, tests, limits[tests])
        file.write_text(text)
        name = f"{file.relative_to(tree / 'src' / 'opmix')}:{line}"
        log(f"{outcome:8} {name} {what}\n")
        if outcome == "passed":
            source = text.splitlines()[line - 1].strip()
            survivors.append({"at": name, "mutation": what, "line": source})
        killed += outcome != "passed"
    score = killed / len(chosen)
    return {"mutants": len(everything), "sample": len(chosen), "killed": killed, "score": score, "survivors": survivors}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--commit", default="HEAD")
    arguments.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="TARGET")
    arguments.add_argument("--sample", type=int, default=60)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, default=Path("runs/mutation.json"))
    args = arguments.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    import_big()
    folder = Path(tempfile.mkdtemp(prefix="mutation-"))
    subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(folder / "tree"), args.commit], check=True)
    try:
        found = examine(
            folder / "tree",
            args.only,
            args.sample,
            args.seed,
            lambda text: (sys.stdout.write(text), sys.stdout.flush()),
        )
    finally:
        shutil.rmtree(folder)
        subprocess.run(["git", "worktree", "prune"], check=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"commit": args.commit, "seed": args.seed, **found}, indent=2) + "\n")
    sys.stdout.write(f"{found['killed']} of {found['sample']} killed: {found['score']:.0%}\n")


if __name__ == "__main__":
    main()
