"""The house rules that a test can hold: imports point down, sizes stay small, the public surface is what it says."""

import ast
import gc
import importlib
import re
from pathlib import Path

import house
import pytest

import opmix

ROOT, REPOSITORY = Path(opmix.__file__).parent, Path(__file__).parents[1]

# Floors, lowest first; a module may import from its own floor and those below.
FLOORS = [
    {"errors", "settings", "domain", "progress"},
    {"runs", "compute", "mixing", "protocols"},
    {"execution"},
    {"target", "results"},
    {"report", "exporters", "trackers"},
    {"data", "models"},
    {"training", "testing"},
    {"continual"},
    {"probes"},
    {"config"},
    {"methods", "scores"},
    {"mixture_search"},
    {"lifecycle"},
    {"comparison"},
    {"api", "fit"},
    {"plugins"},
    {"ask_tell"},
    {"view"},
    {"scaffold"},
    {"preflight"},
    {"discovery"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
IMPORTS = (ast.Import, ast.ImportFrom)
FLOOR_OF = {name: level for level, names in enumerate(FLOORS) for name in names}


@pytest.fixture(scope="module")
def modules():
    """Every module's path, text and all nodes of its syntax tree, root first: read and walked once, and given back afterwards.

    Garbage is not looked for meanwhile: among a million nodes that takes as long as everything else here.
    """
    gc.disable()
    try:
        texts = [(path, path.read_text()) for path in sorted(ROOT.rglob("*.py"))]
        yield [(path, text, list(ast.walk(ast.parse(text)))) for path, text in texts]
    finally:
        gc.enable()


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(nodes: list[ast.AST]):
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "opmix":
            parts = node.module.split(".")
            yield from ([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("opmix."))


def test_imports_point_down(modules):
    assert len(modules) > 40
    wrong, seen = [], 0
    for path, _, nodes in modules:
        if path.parent == ROOT and path.name == "__init__.py":
            continue
        here = room(path)
        for target in imports_of(nodes):
            seen += 1
            if FLOOR_OF[target] > FLOOR_OF[here] or (
                FLOOR_OF[target] == FLOOR_OF[here] and target != here and {target, here} - PEERS
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert seen > 100
    assert wrong == []


PEERS = {
    "errors",
    "settings",
    "domain",
    "target",
    "progress",
    "runs",
    "compute",
    "mixing",
    "protocols",
    "training",
    "testing",
    "data",
    "models",
}


def test_modules_and_functions_stay_small(modules):
    long = []
    for path, text, nodes in modules:
        if len(text.splitlines()) > 400:
            long.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in nodes:
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                length = (node.end_lineno or 0) - first.lineno + 1
                if length > 60:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} {length} lines")
    assert long == []


def test_the_public_surface_is_complete_sorted_and_documented():
    assert opmix.__all__ == sorted(opmix.__all__)
    for name in opmix.__all__:
        assert getattr(opmix, name).__doc__, name
    for package in ("opmix.data", "opmix.demo", "opmix.exporters", "opmix.report", "opmix.trackers"):
        module = importlib.import_module(package)
        assert module.__all__ == sorted(module.__all__, key=lambda n: (n.lower(), n)) or module.__all__ == sorted(
            module.__all__
        )
        assert all(getattr(module, name).__doc__ for name in module.__all__)
    assert set(opmix.__all__) <= set(dir(opmix))


def test_the_library_never_prints(modules):
    for path, _, nodes in modules:
        calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not calls, path


def test_few_files_lie_loose_at_the_root():
    assert len([p for p in ROOT.glob("*.py") if p.name not in ("__init__.py", "__main__.py")]) <= 8


def test_the_formatter_is_never_switched_off(modules):
    everything = [
        p for folder in ("src", "tests", "benchmarks", "examples") for p in (REPOSITORY / folder).rglob("*.py")
    ]
    assert len(everything) > len(modules)
    assert [str(p) for p in everything if re.search(r"# fmt: (skip|off)", p.read_text())] == []


def test_code_lines_have_at_most_120_columns(modules):
    """Prose (docstrings, comments) may be as long as the linter says."""
    long = []
    for path, text, nodes in modules:
        prose = {
            line
            for node in nodes
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        long += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(text.splitlines(), 1)
            if len(line) > 120 and number not in prose and not line.lstrip().startswith("#")
        ]
    assert long == []


def test_no_files_import_each_other_in_a_circle(modules):
    """Lazy imports and those for types count: what needs each other to be read belongs in one file."""
    trees = {
        house.module_name(path, ROOT.parent): ast.Module([n for n in nodes if isinstance(n, IMPORTS)], [])
        for path, _, nodes in modules
    }
    imports = {name: house.imported(tree, set(trees)) - {name} for name, tree in trees.items()}
    assert imports["opmix.api"], "the imports were not found"
    assert house.circles(imports) == []
    assert house.circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == [["a", "b"]]


def test_the_page_on_architecture_shows_every_folder():
    page = (ROOT.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.partition("```")[2].partition("```")[0]
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert {name for name in folders if f"{name}/" not in tree} == set()
