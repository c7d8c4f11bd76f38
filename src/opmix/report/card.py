"""A section for a model card: what a model was trained on, how sure that was, what it cost, and the fingerprints to check it by.

The section stands between two marks, so that writing it again replaces it and nothing else of a README.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opmix.errors import ConfigError, StoreError
from opmix.results.life import NAME as LIFE
from opmix.results.life import LifeFile, StageEntry
from opmix.results.manifest import Manifest
from opmix.results.mixture import NAME, MixtureFile
from opmix.runs.files import environment, write_text
from opmix.runs.store import RunStore, fingerprint

BEGIN, END = "<!-- opmix: data mixture -->", "<!-- opmix: end -->"
_FRONT = "---\nlibrary_name: transformers\ntags:\n- opmix\n---\n\n"


@dataclass(frozen=True, kw_only=True)
class CardPart:
    """One stretch of training on one mixture."""

    title: str
    mixture: Mapping[str, float]
    """Shares of training tokens."""
    interval: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Of the optimum's shares; left out where another mixture was trained on."""
    level: float = 0.9
    reason: str = ""
    tokens: float | None = None
    cost: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the section says."""

    parts: Sequence[CardPart]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """What of (model, data, decision) to hash."""
    run: Manifest | None = None
    """Of the run that decided, whose versions these are; None: this program decides."""

    def section(self) -> str:
        """Markdown between the two marks; no clock decides any of it."""
        lines = [BEGIN, "## Data mixture", ""]
        lines += [f"Found by opmix {_program(self.run)} (OP-Mix, arXiv:2605.15220).", ""]
        for part in self.parts:
            lines += _part(part)
        if self.fingerprints:
            lines += ["| fingerprint of | |", "|---|---|"]
            lines += [f"| {_cell(name)} | `{value}` |" for name, value in self.fingerprints.items()]
            lines.append("")
        return "\n".join([*lines, END, ""])

    def into(self, readme: str) -> str:
        """A README with the section in place of an older one, else at its end; an empty one gets a head for the hub."""
        head, mark, rest = readme.partition(BEGIN)
        if mark and END in rest:
            return head + self.section() + rest.partition(END)[2].removeprefix("\n")
        before = readme.rstrip("\n") + "\n\n" if readme.strip() else _FRONT
        return before + self.section()

    def write(self, place: Path) -> Path:
        """Write into `README.md` of a folder, or into a file.

        Raises:
            ConfigError: Neither a folder nor a name that ends in `.md`.
            StoreError: It cannot be read or written.
        """
        path = place / "README.md" if place.is_dir() else place
        if path.suffix.lower() != ".md":
            raise ConfigError(f"{place}: is no folder and no .md file; expected a model folder, or a README.md")
        try:
            old = path.read_text(encoding="utf-8") if path.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{path}: cannot be read ({error}); expected a text file") from error
        return write_text(path, self.into(old))


def run_card(folder: Path) -> Card:
    """The card of a run folder: of a decision, or of a life's first seed.

    Raises:
        StoreError: Neither, or damaged.
    """
    if (folder / LIFE).is_file():
        return _life(folder)
    if not (folder / NAME).is_file():
        raise StoreError(f"{folder}: neither {NAME} nor {LIFE}; expected the folder of a finished search, fit or life")
    found = MixtureFile.read(folder)
    cost = found.cost
    part = CardPart(
        title="The next stretch of training",
        mixture=found.mixture,
        interval=found.interval if found.mixture == found.optimum else {},
        level=found.interval_level,
        reason="" if found.decision is None else found.decision.reason,
        tokens=None if cost is None else cost.stage_tokens,
        cost="" if cost is None or cost.search_share is None else search_cost(cost.total("flops"), cost.search_share),
    )
    return Card(
        parts=[part], fingerprints={"decision": fingerprint(found.json()), **_inputs(folder)}, run=_origin(folder)
    )


def _program(run: Manifest | None) -> str:
    """Version and commit, as far as they are known and look like it."""
    made = environment() if run is None else run.content
    versions, commit = made.get("versions"), made.get("commit")
    version = versions.get("opmix") if isinstance(versions, dict) else None
    known = isinstance(version, str) and re.fullmatch(r"[\w.+-]{1,40}", version, re.ASCII)
    exact = isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{7,64}", commit)
    return f"{version if known else 'from source'}{f', commit `{commit}`' if exact else ''}"


def search_cost(flops: float, share: float) -> str:
    """What finding it cost, in words."""
    return f"{flops:.3g} FLOPs, {share:.1%} of the training it is for"


def _origin(folder: Path) -> Manifest:
    return Manifest.find(folder) or Manifest(rows={}, content={})


def _inputs(folder: Path) -> dict[str, str]:
    """Fingerprints that the probes' records carry, and of the settings."""
    found: dict[str, str] = {}
    manifest = Manifest.find(folder)
    if manifest is not None and manifest.config is not None:
        found["settings"] = fingerprint(manifest.config)
    store, place = RunStore(folder), folder / "steps"
    for path in sorted(place.glob("**/*.json")):
        record = store.record(path.relative_to(place).with_suffix("").as_posix())
        inputs = {} if record is None else record["inputs"]
        for name in ("model", "data"):
            if name in inputs and name not in found:
                value: Any = inputs[name]
                found[name] = value if isinstance(value, str) else fingerprint(value)
    return found


def _life(folder: Path) -> Card:
    content = LifeFile.read(folder)
    seed, life = next(iter(content.seeds.items()))
    parts = [
        CardPart(
            title=f"Stage {position}: {stage.name}",
            mixture={d: x for d, x in stage.mixture.items() if x > 0},
            interval=_interval(stage),
            reason="" if stage.last_decision is None else stage.last_decision.reason,
            tokens=stage.tokens,
        )
        for position, stage in enumerate(life.stages, 1)
    ]
    return Card(
        parts=parts,
        fingerprints={f"life (seed {seed})": fingerprint(life.json()), **_inputs(folder)},
        run=_origin(folder),
    )


def _interval(stage: StageEntry) -> Mapping[str, Sequence[float]]:
    decided = stage.last_decision
    return decided.interval if decided is not None and decided.optimum == decided.mixture else {}


def _part(part: CardPart) -> Iterable[str]:
    tokens = "" if part.tokens is None else f" ({part.tokens:,.0f} tokens)"
    yield from (f"### {_cell(part.title)}{tokens}", "")
    wide = bool(part.interval)
    yield "| domain | share of tokens |" + (f" {part.level:.0%} interval |" if wide else "")
    yield "|---|---|" + ("---|" if wide else "")
    for name, share in sorted(part.mixture.items(), key=lambda item: -item[1]):
        low, high = part.interval.get(name, (share, share)) if wide else (0.0, 0.0)
        yield f"| {_cell(name)} | {share:.4f} |" + (f" {low:.3f} to {high:.3f} |" if wide else "")
    yield ""
    if part.reason:
        yield from (f"Decision: {_cell(part.reason)}.", "")
    if part.cost:
        yield from (f"Cost of the search: {part.cost}.", "")


def _cell(text: str) -> str:
    """Text that ends no cell and begins no markup of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
