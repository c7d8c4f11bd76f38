"""Files that stand in two places: text that is trained on must not judge; and whether tokens can be kept."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from opmix.data.sources import resolve
from opmix.domain import SPLITS, Domain, Split
from opmix.errors import DataError
from opmix.preflight.checks import Findings
from opmix.runs.files import default_cache_dir, existing


def check_cache(cache_dir: str | None, findings: Findings) -> None:
    """Tokens can be kept where they are to be."""
    folder = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    try:
        with tempfile.TemporaryDirectory(dir=existing(folder)):
            pass
    except OSError as error:
        findings.fail(
            "cache_dir",
            f"{folder}: nothing can be written there ({error.strerror})",
            "give a folder that is yours to write",
        )


def check_overlap(domains: Mapping[str, Domain], findings: Findings) -> None:
    """Find files used twice: in two splits of one domain (wrong), or in two domains (suspicious)."""
    places: dict[str, list[tuple[str, Split]]] = defaultdict(list)
    for name, domain in domains.items():
        for split in SPLITS:
            source = getattr(domain, split)
            if source is None or source.format in ("hub", "arrow"):
                continue
            try:
                files = resolve(source, domain=name)
            except DataError:
                continue  # told already
            for file in files:
                if file.format != "arrow":  # one folder holds all splits
                    places[str(Path(file.path).resolve())].append((name, split))
    for path, users in places.items():
        told = " and ".join(f"{split} of {name}" for name, split in users)
        trained = {name for name, split in users if split == "train"}
        if any(split != "train" and name in trained for name, split in users):
            findings.fail(
                "domains",
                f"{path} is {told}",
                "leave the held-out set away to have one split off, or give another file",
            )
        elif len(users) > 1:
            findings.warn("domains", f"{path} is {told}", "a file should belong to one domain and one split")
