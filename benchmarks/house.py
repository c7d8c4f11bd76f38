"""How big and how tangled the source is, commit by commit: one row of a Markdown table each.

    python benchmarks/house.py d824eca HEAD

Sizes and imports are read from the source; lazy and TYPE_CHECKING imports count. A circle is a set of files each of which reaches the
others by imports. The search path is every file that the module of `run_search` reaches, `report` left out. Frames are opmix's own on
the stack when `Trainer.train` is first entered by `opmix search` on a tiny model.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

LONG_LINE = 120
LONG_FUNCTION = 60
COLUMNS = (
    "modules",
    "lines",
    "classes",
    "circles (files)",
    "fmt: skip",
    f"lines > {LONG_LINE}",
    f"functions > {LONG_FUNCTION}",
    "search path: classes / modules",
    "loose files",
    "frames",
)

# Runs in a process of its own with the commit's source: prints how many opmix frames call the first `Trainer.train`.
FRAMES = """
import sys, traceback
from pathlib import Path
import opmix, transformers, yaml
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

folder, adaptive, package = Path(sys.argv[1]), sys.argv[2] == "adaptive", str(Path(opmix.__file__).parent)
files = write_toy_domains(folder / "data", {"alpha": 1, "beta": 2}, 60)
tokenizer = tiny_tokenizer()
tokenizer.save_pretrained(folder / "model")
tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
config = {
    "model": str(folder / "model"), "domains": {n: {"train": str(f), "holdout": 0.2} for n, f in files.items()}, "sequence_length": 32,
    "budget": {"tokens": 20000}, "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
    "probes": {"steps": 16, "adaptive": adaptive}, "proxies": {"eval_sequences": 4},
}
(folder / "search.yaml").write_text(yaml.safe_dump(config))

def train(self, *args, **kwargs):
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(package)]
    print("FRAMES", len(frames), " -> ".join(f.name for f in frames))
    raise SystemExit(0)

transformers.Trainer.train = train
sys.argv = ["opmix", "search", str(folder / "search.yaml"), "--out", str(folder / "run")]
from opmix.cli.main import main
main()
"""


def source_of(commit: str, folder: Path) -> Path:
    """The commit's `src`, unpacked."""
    packed = subprocess.run(["git", "archive", commit, "src"], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def module_name(path: Path, src: Path) -> str:
    parts = path.relative_to(src).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, names: set[str]) -> set[str]:
    """Modules among `names` that are imported anywhere in a file: `from package import module` means the module."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in names else node.module for full in whole.values()}
    return found & names


def reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    """`start` and every module that imports lead to from there."""
    seen, todo = {start}, [start]
    while todo:
        new = imports[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Sets of two or more files that all reach each other."""
    beyond = {name: set().union(*(reached(n, imports) for n in targets)) for name, targets in imports.items()}
    groups = {tuple(sorted(m for m in beyond if m in beyond[n] and n in beyond[m])) for n in beyond if n in beyond[n]}
    return sorted(list(group) for group in groups if len(group) > 1)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return (function.end_lineno or 0) - first.lineno + 1


def search_module(trees: dict[str, ast.Module]) -> str:
    """Where `run_search` is defined, as `opmix.api` imports it."""
    for node in ast.walk(trees["opmix.api"]):
        if isinstance(node, ast.ImportFrom) and any(a.name == "run_search" for a in node.names):
            return str(node.module)
    return "opmix.api"


def frames(src: Path, folder: Path, kind: str) -> tuple[str, str]:
    """Opmix frames from the command line to the first training step, and their names."""
    (folder / kind).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(src), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", FRAMES, str(folder / kind), kind]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = re.search(r"^FRAMES (\d+) (.*)$", ran.stdout, re.MULTILINE)
    if found is None:
        sys.exit(f"no training step was reached ({kind}):\n{ran.stdout[-1000:]}{ran.stderr[-2000:]}")
    return found[1], found[2]


def measured(src: Path, folder: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """One row, and what stands behind its numbers."""
    package = src / "opmix"
    texts = {module_name(p, src): p.read_text() for p in sorted(package.rglob("*.py"))}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    imports = {name: imported(tree, set(texts)) - {name} for name, tree in trees.items()}
    lines = [line for text in texts.values() for line in text.splitlines()]
    classes = {n: [c.name for c in ast.walk(t) if isinstance(c, ast.ClassDef)] for n, t in trees.items()}
    functions = [
        f for t in trees.values() for f in ast.walk(t) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    path = {n for n in reached(search_module(trees), imports) if not n.startswith("opmix.report")}
    stacks = {kind: frames(src, folder, kind) for kind in ("fixed", "adaptive")}
    found = circles(imports)
    values = (
        len(texts),
        len(lines),
        sum(map(len, classes.values())),
        f"{len(found)} ({sum(map(len, found))})",
        sum(bool(re.search(r"#\s*fmt:\s*(skip|off)", line)) for line in lines),
        sum(len(line) > LONG_LINE for line in lines),
        sum(body_lines(f) > LONG_FUNCTION for f in functions),
        f"{sum(len(classes[n]) for n in path)} / {len(path)}",
        len(list(package.glob("*.py"))),
        f"{stacks['fixed'][0]}, adaptive {stacks['adaptive'][0]}",
    )
    details = {"circle": [" <-> ".join(c) for c in found], "frames": [s for _, s in stacks.values()]}
    return dict(zip(COLUMNS, map(str, values), strict=True)), details


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("commits", nargs="*", default=["HEAD"])
    args = arguments.parse_args()
    sys.stdout.write(f"| commit | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}\n")
    behind: list[str] = []
    for commit in args.commits:
        with tempfile.TemporaryDirectory() as temporary:
            row, details = measured(source_of(commit, Path(temporary)), Path(temporary))
        sys.stdout.write(f"| {commit} | {' | '.join(row.values())} |\n")
        behind += [f"{commit}: {kind}: {text}" for kind, texts in details.items() for text in texts]
    sys.stdout.write("\n" + "".join(f"{line}\n" for line in behind))


if __name__ == "__main__":
    main()
