"""Writing files whole or not at all, and the facts a manifest records."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from opmix.errors import StoreError


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all: temporary name, flush, rename.

    Raises:
        StoreError: The folder cannot be written (full, read-only).
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from error
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON atomically; NaN and infinity become null."""
    return write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def environment() -> dict[str, Any]:
    """Versions and machine, for the manifest."""
    versions: dict[str, str | None] = {}
    for name in (
        "opmix",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "tokenizers",
        "numpy",
        "scipy",
        "clarabel",
    ):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions,
    }


def default_cache_dir() -> Path:
    """Where tokenised data are kept unless a configuration says otherwise: `$XDG_CACHE_HOME/opmix` or `~/.cache/opmix`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opmix"
