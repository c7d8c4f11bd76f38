"""A mixture with its data: every domain's part of the budget written out in the layout of a trainer that cannot read what is there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opmix.config import ModelConfig
from opmix.data.chat.conversation import domain_kind
from opmix.data.prepare import prepare_domain
from opmix.data.token_writers import TOKEN_WRITERS
from opmix.data.tokenization import vocabulary_size
from opmix.data.written_out import ROWS, Pieces, Written, write_folder, write_rows, write_tokens
from opmix.domain import Domain, RowSchema, Source
from opmix.errors import ConfigError, StoreError
from opmix.exporters import Export, ExportOptions, exporter_for, read_plan
from opmix.exporters.plan import DomainPlan, MixturePlan
from opmix.models.files import located
from opmix.models.load import load_tokenizer
from opmix.progress import Progress
from opmix.results.manifest import Manifest
from opmix.results.mixture import MixtureFile
from opmix.runs.files import default_cache_dir, existing
from opmix.runs.store import fingerprint
from opmix.settings.loading import validated

_TEXT_BYTES = 5.0
"""Of a token of a conversation with its keys, where only answers were counted."""
_ROW_BYTES = 40
_SLACK = 1.1


@dataclass(frozen=True, kw_only=True)
class Materialised:
    """A trainer's file, and what it names."""

    export: Export
    written: Mapping[str, Written]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One domain of the mixture."""

    plan: DomainPlan
    domain: Domain
    folder: Path
    wanted: int
    num_bytes: float


def materialise(
    run: Path,
    to: str,
    folder: Path,
    options: ExportOptions | None = None,
    *,
    tokenizer: str | None = None,
    progress: Progress,
) -> Materialised:
    """Write each domain's share of the budget into a folder of its own, and the trainer's file that reads them.

    Documents are drawn from all over the training split, so that held-out ones are not among them; shares hold to a document. A domain
    that has less than its part is written whole, and repeated by the trainer. What is finished is found again.

    Args:
        run: Folder of a search.
        to: Name of an exporter.
        folder: Where the domains' folders go.
        options: What the run does not say.
        tokenizer: Folder or name; None: that of the run's model.
        progress: Told what will be written before anything is.

    Raises:
        ConfigError: No budget, a run that knows no data, or a trainer that is not served.
        DataError: A source cannot be read, or not be written in this format.
        StoreError: Too little room, or the folder holds something else.
    """
    options, exporter, folder = options or ExportOptions(), exporter_for(to), folder.absolute()
    plan = read_plan(run, options)
    manifest = _checked(run, to, plan, options)
    base = Path(manifest.base or ".") if options.base is None else options.base
    config: Mapping[str, Any] = manifest.config or {}
    model = validated(ModelConfig, config["model"])
    template = model.template(base)
    domains = {n: validated(Domain, config["domains"][n]) for n in plan.names}
    domains = {n: replace(d, name=n).located(base, template) for n, d in domains.items()}
    domains = {n: replace(d, kind=domain_kind(d)) for n, d in domains.items()}
    jobs = _jobs(run, plan, domains, folder, to)
    exporter.export(_written_plan(plan, jobs, to, {}))  # what it refuses is said before any work
    _say(jobs, folder, progress)
    name = located(tokenizer or model.tokenizer or model.name, base)
    made = load_tokenizer(name, revision=model.revision, trust_remote_code=model.trust_remote_code)
    cache = Path(config["cache_dir"]) if config.get("cache_dir") else default_cache_dir()
    written = {}
    for job in jobs:
        with progress.task(f"write {job.plan.name}", 0):
            split = prepare_domain(job.domain, made, cache_dir=cache).train
            pieces = Pieces.of(split)
            kept = pieces.chosen(job.wanted, plan.seed)
            size = Written(tokens=int(pieces.worth[kept].sum()), documents=int(kept.sum()))
            form, length = TOKEN_WRITERS.get(to), plan.sequence_length or 0
            key = fingerprint(["written-1", to, split.fingerprint, job.wanted, plan.seed, length if form else None])
            write = (
                write_rows(job.domain, pieces, kept, made)
                if form is None
                else write_tokens(pieces, kept, form, vocabulary_size(made), length)
            )
            written[job.plan.name] = write_folder(job.folder, key, size, write)
    return Materialised(export=exporter.export(_written_plan(plan, jobs, to, written)), written=written)


def _checked(run: Path, to: str, plan: MixturePlan, options: ExportOptions) -> Manifest:
    """The run's manifest, which knows its data.

    Raises:
        ConfigError: It does not, or something else is missing.
    """
    manifest = Manifest.find(run)
    if manifest is None or manifest.config is None or "domains" not in manifest.config:
        raise ConfigError(f"{run}: a run of `opmix {plan.kind}`, which knows no data; expected one of `opmix search`")
    if plan.budget is None:
        raise ConfigError(f"{run}: no budget is known, so neither how much to write; give --tokens")
    if options.paths or options.row_tokens or options.available:
        raise ConfigError("--materialise: places and sizes follow from what is written; leave --path and the like out")
    if to == "verl":
        raise ConfigError(
            "--materialise: verl's rows need the answers that rewards are computed of; write them yourself"
        )
    if to in TOKEN_WRITERS and plan.chats:
        raise ConfigError(
            f"domain {plan.chats[0]!r}: conversations as bare tokens would lose which of them are learned; expected "
            "texts; export to a trainer that reads conversations"
        )
    if to in ("streaming", "llm-foundry", "litdata") and plan.unit == "documents":
        raise ConfigError("--unit: documents; --materialise writes sequences; leave --unit out")
    return manifest


def _jobs(run: Path, plan: MixturePlan, domains: Mapping[str, Domain], folder: Path, to: str) -> list[_Job]:
    counts, jobs = MixtureFile.read(run).domains, []
    for each in plan.domains:
        train = counts.get(each.name, {}).get("train", {})
        wanted = max(1, round(each.share * (plan.budget or 0)))
        tokens = min(wanted, train.get("supervised_tokens", train.get("tokens", wanted)))
        per_token = train["bytes"] / max(train["tokens"], 1) if "bytes" in train else _TEXT_BYTES
        rows = tokens * train.get("documents", 0) / max(train.get("tokens", 1), 1)
        if "supervised_tokens" in train:
            tokens = round(tokens * train["tokens"] / max(train["supervised_tokens"], 1))
            per_token = _TEXT_BYTES
        size = tokens * 4.0 if to in TOKEN_WRITERS else tokens * per_token + rows * _ROW_BYTES
        jobs.append(
            _Job(
                plan=each, domain=domains[each.name], folder=folder / each.name, wanted=wanted, num_bytes=size * _SLACK
            )
        )
    return jobs


def _say(jobs: list[_Job], folder: Path, progress: Progress) -> None:
    """How much will be written, and whether it fits.

    Raises:
        StoreError: It does not.
    """
    missing = [job for job in jobs if not job.folder.exists()]
    needed = sum(job.num_bytes for job in missing)
    free = shutil.disk_usage(existing(folder)).free
    said = (
        f"{sum(job.wanted for job in missing):,} tokens of {len(missing)} domains, at most about {needed / 1e9:.3g} GB"
    )
    if needed > free:
        raise StoreError(
            f"{folder}: {said} are to be written, {free / 1e9:.3g} GB are free; free space, choose another folder, or "
            "give smaller --tokens"
        )
    progress.note(f"writing {said}, into {folder} ({free / 1e9:.3g} GB free)")


def _written_plan(plan: MixturePlan, jobs: list[_Job], to: str, written: Mapping[str, Written]) -> MixturePlan:
    """The plan over what is, or would be, written."""
    form, found = TOKEN_WRITERS.get(to), []
    for job in jobs:
        made = written.get(job.plan.name) or Written(tokens=job.wanted, documents=1)
        place = job.folder / (ROWS if form is None else form.place)
        rows: RowSchema = "text" if job.plan.rows == "text" else "messages"
        found.append(
            replace(
                job.plan,
                source=Source(paths=(str(place),), format="jsonl" if form is None else None),
                path=str(place),
                rows=rows,
                tokens=made.tokens,
                row_tokens=made.tokens / made.documents,
                held_out=0.0,
            )
        )
    return replace(plan, domains=tuple(found))
