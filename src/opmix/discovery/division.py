"""`opmix discover`: sample, cluster, name, then divide the whole corpus in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from opmix.discovery.clusters import Clusters, choose, cluster, cluster_names, telling_terms
from opmix.discovery.corpus import CHARACTERS, Corpus, Document, fair_sample
from opmix.discovery.features import Features, Lexicon, TfidfFeatures, require_sklearn
from opmix.discovery.write import FRAGMENT, RECORD, DomainFiles, make_room, write_fragment
from opmix.errors import ConfigError, DataError, StoreError
from opmix.progress import Progress, Silent
from opmix.runs.files import write_json

MIN_CORPUS = 20
BATCH = 1024
WEAK = 0.1
"""Silhouette below which clusters hardly deserve the name."""


@dataclass(frozen=True, kw_only=True)
class DiscoverySettings:
    """How a corpus is divided."""

    domains: int | None = None
    """Their number; None: the one with the highest silhouette."""
    most: int = 24
    """Largest number tried."""
    field: str | None = None
    """Key of the text; None: told from each file."""
    embed: str | None = None
    """Model whose hidden states are clustered; None: TF-IDF words."""
    sample: int = 20_000
    """Documents that clusters are fitted on."""
    index_only: bool = False
    """Write a table of assignments, not the documents again."""
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.domains is not None and self.domains < 2:
            problems.append(f"--domains: {self.domains}; expected `auto` or a number from 2")
        if self.most < 2:
            problems.append(f"--most: {self.most}; expected a number from 2")
        if self.sample < MIN_CORPUS:
            problems.append(f"--sample: {self.sample}; expected at least {MIN_CORPUS} documents")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Discovered:
    """One domain that was found."""

    name: str
    terms: tuple[str, ...]
    documents: int
    text_bytes: int


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """A corpus divided."""

    out: Path
    domains: tuple[Discovered, ...]
    """Largest first."""
    silhouette: float
    scores: dict[int, float]
    """Silhouette of every number of domains that was tried; empty if the number was given."""
    notes: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """The content of `discovery.json`, but for settings and files."""
        return {
            "domains": [asdict(domain) for domain in self.domains],
            "silhouette": self.silhouette,
            "scores": self.scores,
            "notes": list(self.notes),
        }


def discover(
    paths: Sequence[str],
    out: Path,
    settings: DiscoverySettings | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Discovery:
    """Divide a corpus into domains of like documents and write them.

    Two passes over the corpus are made, one document at a time: one to draw a sample, on which words, compression, clusters and
    names are fitted, and one to assign every document. The same corpus and seed give the same files.

    Args:
        paths: Files, globs and folders of text.
        out: An empty or new folder: `<domain>.jsonl.gz` each and `domains.yaml`, or `assignments.csv.gz`; and `discovery.json`.
        settings: How; None: the defaults.
        force: Replace a former discovery in `out`.
        progress: Told of all four steps.

    Raises:
        ConfigError: scikit-learn is missing, or `out` is not free.
        DataError: The corpus cannot be read, is too small, or shares no words.
        ModelError: The embedding model cannot be loaded.
    """
    settings, progress = settings or DiscoverySettings(), progress or Silent()
    require_sklearn()
    corpus = Corpus.of(paths, settings.field)
    make_room(out, force=force)
    with progress.task("sampling the corpus", 0) as advance:
        texts, count = fair_sample(corpus, settings.sample, settings.seed, lambda done: advance(done, 0))
    least = max(MIN_CORPUS, 2 * (settings.domains or 0))
    if len(texts) < least:
        raise DataError(
            f"{paths[0]}: {len(texts)} documents; expected at least {least} to find domains in; give more text or "
            "fewer --domains"
        )
    with _one_thread():
        lexicon = Lexicon()
        matrix = lexicon.fit(texts)
        features: Features = _features(settings, lexicon, matrix)
        points = features.fit(texts)
        clusters, scores = _clusters(points, settings, progress)
        number = len(clusters.centres)
        terms = telling_terms(matrix, clusters.labels, lexicon.words, number)
        names = cluster_names(terms)
        files = _divide(corpus, count, features, clusters, names, out, settings, progress)
    found = [Discovered(n, t, d, b) for n, t, d, b in zip(names, terms, files.documents, files.bytes, strict=True)]
    kept = tuple(sorted((f for f in found if f.documents), key=lambda f: (-f.text_bytes, f.name)))
    result = Discovery(
        out=out,
        domains=kept,
        silhouette=clusters.silhouette,
        scores=scores,
        notes=tuple(_notes(clusters, found, settings)),
    )
    _write(result, settings, paths)
    return result


def _divide(
    corpus: Corpus,
    count: int,
    features: Features,
    clusters: Clusters,
    names: Sequence[str],
    out: Path,
    settings: DiscoverySettings,
    progress: Progress,
) -> DomainFiles:
    """Assign and write every document; what is returned is closed and knows the counts."""
    try:
        with (
            DomainFiles(out, names, index_only=settings.index_only) as files,
            progress.task("dividing the corpus", count) as advance,
        ):
            for done, batch in enumerate(_batches(corpus), 1):
                labels, similarity = clusters.assign(features.transform([d.text[:CHARACTERS] for d in batch]))
                for document, label, value in zip(batch, labels.tolist(), similarity.tolist(), strict=True):
                    files.write(document, label, value)
                advance(min(done * BATCH, count), count)
            files.commit()
    except OSError as error:
        raise StoreError(
            f"{out}: cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from error
    return files


def _write(result: Discovery, settings: DiscoverySettings, paths: Sequence[str]) -> None:
    written = [RECORD, *(f"{d.name}.jsonl.gz" for d in result.domains), FRAGMENT]
    if settings.index_only:
        written = [RECORD, "assignments.csv.gz"]
    else:
        write_fragment(result.out, [(d.name, d.documents, d.terms) for d in result.domains])
    write_json(
        result.out / RECORD, {"corpus": list(paths), "settings": asdict(settings), "files": written, **result.json()}
    )


def _features(settings: DiscoverySettings, lexicon: Lexicon, matrix: Any) -> Features:
    if settings.embed is None:
        return TfidfFeatures(lexicon, matrix, settings.seed)
    from opmix.discovery.embedding import ModelFeatures

    return ModelFeatures(settings.embed, settings.seed)


def _clusters(points: Any, settings: DiscoverySettings, progress: Progress) -> tuple[Clusters, dict[int, float]]:
    if settings.domains is not None:
        return cluster(points, settings.domains, settings.seed), {}
    with progress.task("choosing the number of domains", settings.most - 1) as advance:
        return choose(points, settings.most, settings.seed, advance)


def _batches(corpus: Corpus) -> Iterator[list[Document]]:
    stream = iter(corpus)
    while batch := list(islice(stream, BATCH)):
        yield batch


def _one_thread() -> AbstractContextManager[Any]:
    """Sums in one order only, whatever the number of cores: the same seed gives the same clusters."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)


def _notes(clusters: Clusters, found: Sequence[Discovered], settings: DiscoverySettings) -> Iterator[str]:
    if clusters.silhouette < WEAK:
        yield (
            f"the clusters overlap (silhouette {clusters.silhouette:.2f}, clear ones have 0.3 and more): this corpus "
            "may be one domain, "
            "or differ in ways that words do not show"
        )
    for domain in found:
        if domain.documents < MIN_CORPUS:
            few = f"{domain.name}: only {domain.documents} documents"
            yield f"{few}; too few for held-out sets of their own; use fewer --domains"
