"""Pydantic's checker of a class, built once."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from pydantic import TypeAdapter

_SWITCH = "PYDANTIC_DISABLE_PLUGINS"


@cache
def checker(kind: Hashable) -> TypeAdapter[Any]:
    """Return what checks values of a dataclass or another annotation: building it takes longer than reading a file."""
    with _no_plugins():
        made: TypeAdapter[Any] = TypeAdapter(cast("Any", kind))
    return made


@contextmanager
def _no_plugins() -> Iterator[None]:
    """Without it pydantic asks every installed package for plugins, longer than a small fit takes; none has a say in our files."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before
