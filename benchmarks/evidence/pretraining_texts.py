"""Domains of the paper's pretraining figure at small size: 30:15:9:48:24 in size, as its five are, and two pairs of them share text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from predictor_texts import documents

from opmix.domain import Domain, Source

UNIT = 170_000
"""Bytes, about 60,000 tokens."""
DOMAINS: dict[str, dict[str, tuple[float, float]]] = {
    "science": {"math_metamath": (0.0, 17.5), "medical_nih": (0.0, 12.5)},
    "medicine": {"medical_nih": (7.0, 17.5), "medical_medquad": (0.0, 4.5)},
    "lexicon": {"dictionary": (0.0, 9.0)},
    "books": {
        "reviews_movie": (0.0, 17.5),
        "bible_kjv": (0.0, 17.5),
        "shakespeare": (0.0, 9.0),
        "speeches_us": (0.0, 4.0),
    },
    "state": {"legal_licenses": (0.0, 16.0), "speeches_us": (0.0, 8.0)},
}
"""Of each source the text from one unit to another."""
HELD_OUT = {"valid": 100_000, "test": 250_000}
"""Bytes of a domain, its sources in proportion."""


def write_domains(folder: Path, data: Path, scale: float) -> dict[str, Domain]:
    """Files of all domains, their training text `scale` times as long; written once.

    Raises:
        LookupError: A source that this machine does not have.
    """
    made = {}
    for name, pieces in DOMAINS.items():
        files = {s: folder / f"{name}.{s}.jsonl" for s in ("train", *HELD_OUT)}
        if not all(f.exists() for f in files.values()):
            folder.mkdir(parents=True, exist_ok=True)
            texts: dict[str, list[str]] = {s: [] for s in files}
            whole = sum(end - start for start, end in pieces.values())
            for source, (start, end) in pieces.items():
                found = documents(source, data)
                texts["train"] += stretch(found["train"], start * scale * UNIT, end * scale * UNIT)
                for split, size in HELD_OUT.items():
                    texts[split] += stretch(found[split], 0, size * (end - start) / whole)
            for split, file in files.items():
                mixed = sorted(texts[split], key=lambda t: hashlib.md5(t.encode(), usedforsecurity=False).digest())
                file.write_text("".join(json.dumps({"text": t}) + "\n" for t in mixed), encoding="utf-8")
        made[name] = Domain(name=name, **{s: Source(paths=(str(f.resolve()),)) for s, f in files.items()})
    return made


def stretch(texts: list[str], start: float, end: float) -> list[str]:
    """Texts that begin between two places, in bytes."""
    ends = np.cumsum([len(t.encode()) for t in texts])
    begins = np.concatenate([[0], ends[:-1]])
    return [t for t, at in zip(texts, begins, strict=True) if start <= at < end]
