"""Files that a page is put together from, and the policy's name for a script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources

from opmix.report.html import Html


def fill(template: str, parts: Mapping[str, Html]) -> Html:
    """Replace `@name@` in one pass, so that nothing inside a part is taken for a placeholder."""
    return Html(re.sub(r"@(\w+)@", lambda m: parts[m[1]], template))


def asset(name: str) -> str:
    """A file of this package."""
    return (resources.files("opmix.report") / name).read_text(encoding="utf-8")


def allow(script: str) -> str:
    """The policy's name for a script: markup that slipped in from outside would not run."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
