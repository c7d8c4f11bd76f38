"""The data of one stage: domains tokenised and cut into rows, text and conversations alike, and the objective that fits them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from opmix.data import ChatRows, PackedSequences, Rows, TokenizedDomain, TokenSplit, domain_kind, prepare_domain
from opmix.data.choice import ChoiceRows, target_kind
from opmix.data.overlap import overlaps
from opmix.data.rows import total
from opmix.data.sources import resolve
from opmix.data.tokenization import eos_id
from opmix.domain import ChatOptions, Domain, Split
from opmix.errors import ConfigError
from opmix.progress import Advance, Progress
from opmix.runs.ranks import ranks_here, refuse_ranks
from opmix.target import naming_target
from opmix.training.distillation import SelfDistillation
from opmix.training.objectives import CAUSAL_LM, SFT, Objective
from opmix.training.settings import DistillationSettings, ObjectiveName


@dataclass(frozen=True, kw_only=True)
class StageData:
    """What a stage trains and is judged on."""

    domains: Mapping[str, TokenizedDomain]
    options: Mapping[str, ChatOptions]
    """Of the chat domains."""
    sequence_length: int
    objective: Objective
    targets: Mapping[str, TokenizedDomain] = field(default_factory=dict)
    """What mixtures are chosen for and is never trained on."""
    shared: tuple[str, ...] = ()
    """A sentence for every target whose text is trained on, as far as samples show."""

    def evaluated(self, split: Split) -> dict[str, Rows]:
        """Rows of a held-out split by evaluation set: domains, then targets.

        Raises:
            DataError: One has not enough tokens for a row, or no conversation fits.
        """
        rows = self.rows(split)
        for name in self.targets:
            with naming_target(name):
                rows[name] = self._rows(name, split)
        return rows

    @property
    def sets(self) -> Mapping[str, TokenizedDomain]:
        """Domains, then targets."""
        return {**self.domains, **self.targets}

    @property
    def bytes_per_token(self) -> dict[str, float]:
        """Of `valid` by evaluation set; questions have none: their losses are not of tokens."""
        compared = {n for n in self.targets if isinstance(rows := self._rows(n, "valid"), ChoiceRows) and rows.compared}
        return {n: d.valid.bytes_per_token for n, d in self.sets.items() if n not in compared}

    def rows(self, split: Split) -> dict[str, Rows]:
        """Rows of a split by domain.

        Raises:
            DataError: A domain has not enough tokens for one, or no conversation fits.
        """
        return {name: self._rows(name, split) for name in self.domains}

    def _rows(self, name: str, split: Split) -> Rows:
        tokens = self.sets[name][split]
        if tokens.mask is None:
            return PackedSequences(tokens, self.sequence_length)
        if name in self.targets and name not in self.options:
            return ChoiceRows(tokens, self.sequence_length)
        options, keep = self.options[name], None
        if split == "train" and isinstance(self.objective, SelfDistillation):
            options, keep = replace(options, packing=False), self.objective.fitting(name)
        return ChatRows(tokens, self.sequence_length, options, keep=keep)

    @cached_property
    def train(self) -> Mapping[str, Rows]:
        """The training rows."""
        return self.rows("train")

    def only(self, names: Collection[str]) -> StageData:
        """The same with some of the domains and targets."""
        domains = {n: d for n, d in self.domains.items() if n in names}
        options = {n: o for n, o in self.options.items() if n in names}
        targets = {n: t for n, t in self.targets.items() if n in names}
        return replace(self, domains=domains, options=options, targets=targets)

    @property
    def available_tokens(self) -> dict[str, int]:
        """Supervised tokens to train on by domain: all of a text's whole sequences, those of conversations that stayed."""
        return {name: total(rows.supervised) for name, rows in self.train.items()}

    @property
    def row_tokens_per_supervised(self) -> float:
        """Tokens that are read for each supervised one, domains weighted alike; 1 for text."""
        return float(np.mean([total(rows.lengths) / total(rows.supervised) for rows in self.train.values()]))

    @property
    def fingerprint(self) -> list[Any]:
        """What rows depend on, the domains' names aside; JSON-like."""
        options = [asdict(self.options[name]) if name in self.options else None for name in self.sets]
        return [
            [d.fingerprint for d in self.domains.values()],
            self.sequence_length,
            *([options] if self.options else []),
            *([[t.fingerprint for t in self.targets.values()]] if self.targets else []),
        ]

    def counts(self, name: str, split: Split) -> dict[str, int]:
        """Tokens, bytes and documents of a split; of conversations their supervised tokens too, in place tokens alone."""
        tokens = self.sets[name][split]
        if not tokens.counted:
            return {"tokens": tokens.num_tokens}
        counts = {"tokens": tokens.num_tokens, "bytes": tokens.num_bytes, "documents": tokens.num_documents}
        return counts if tokens.mask is None else {**counts, "supervised_tokens": tokens.supervised_tokens}

    def notes(self) -> list[str]:
        """What was cut or left out, and what is measured and trained on alike."""
        notes: list[str | None] = list(self.shared)
        if there := [name for name, domain in self.domains.items() if not domain.train.counted]:
            notes.append(
                f"{', '.join(there)}: read where the files lie, which are known by their names, sizes and times of "
                "change alone; their documents are not counted, and copies of held-out ones may be among them"
            )
        for name, rows in self.train.items():
            if isinstance(rows, ChatRows):
                notes.append(rows.report.note(name, self.sequence_length, self.options[name].truncate))
        return [note for note in notes if note]


def prepare_data(
    domains: Mapping[str, Domain],
    tokenizer: Any,
    *,
    targets: Mapping[str, Domain] | None = None,
    objective: ObjectiveName | None,
    sdft: DistillationSettings,
    sequence_length: int,
    cache_dir: Path,
    num_proc: int,
    progress: Progress,
    limit: int | None = None,
    known: dict[tuple[Domain, str | None], TokenizedDomain] | None = None,
) -> StageData:
    """Tokenise domains and choose the objective that fits them.

    Args:
        domains: By name.
        tokenizer: The model's.
        targets: By name, as domains whose `train` chooses mixtures; see `Target.domain`.
        objective: None: `sft` where a domain holds conversations, else `causal_lm`.
        sdft: Of self-distillation.
        sequence_length: Tokens of a row at most.
        cache_dir: Of tokenised data.
        num_proc: Processes that tokenise.
        progress: Told about every batch.
        limit: Positions the model has.
        known: What has been tokenised in this process, to be used and filled.

    Raises:
        ConfigError: The objective does not fit what the domains hold.
        DataError: A domain cannot be read or tokenised.
    """
    tokenise = _Tokenising(tokenizer, cache_dir, num_proc, progress, {} if known is None else known)
    first = not tokenise.known
    wanted = {name: replace(d, kind=domain_kind(d)) for name, d in domains.items()}
    if objective == "sdft":
        wanted = {name: replace(d, chat=replace(d.chat, supervise="last")) for name, d in wanted.items()}
    chats = {name: d for name, d in wanted.items() if d.kind == "chat"}
    objective = objective or ("sft" if chats else "causal_lm")
    check_objective(objective, list(chats))
    if objective == "sdft":
        refuse_ranks("self-distillation", "its teacher answers in one process; start it without a launcher")
    tokenised = {name: tokenise(domain, "tokenise") for name, domain in wanted.items()}
    aims = _read_as(targets or {})
    check_apart(domains, aims)
    shared: tuple[str, ...] = ()
    if aims and first:  # the stages of a life are parts of what was looked at before them
        with progress.task("text of targets in what is trained on", 0):
            shared = tuple(map(str, overlaps(domains, aims)))
    for sentence in shared:
        progress.note(sentence)
    judged = tokenise.targets(aims)
    chosen: Objective = SFT if objective == "sft" else CAUSAL_LM
    if objective == "sdft":
        contexts = {name: tokenise(domain, "contexts of", sdft.demonstration).train for name, domain in chats.items()}
        ends = stop_ids(tokenizer, {name: tokenised[name].train for name in chats})
        chosen = SelfDistillation(options=sdft, contexts=contexts, limit=limit, stop_ids=ends)
    return StageData(
        domains=tokenised,
        options={name: d.chat for name, d in [*chats.items(), *aims.items()] if d.kind == "chat"},
        sequence_length=sequence_length,
        objective=chosen,
        targets=judged,
        shared=shared,
    )


def prepare_targets(
    targets: Mapping[str, Domain], tokenizer: Any, *, cache_dir: Path, num_proc: int, progress: Progress
) -> tuple[dict[str, TokenizedDomain], dict[str, ChatOptions]]:
    """Tokenised targets, as `StageData` wants them, and the options of those that are conversations; see `prepare_data`.

    Raises:
        DataError: One cannot be read or tokenised.
    """
    aims = _read_as(targets)
    found = _Tokenising(tokenizer, cache_dir, num_proc, progress, {}).targets(aims)
    return found, {name: d.chat for name, d in aims.items() if d.kind == "chat"}


@dataclass(frozen=True)
class _Tokenising:
    """Domains become tokens once a process, from the cache where they lie there."""

    tokenizer: Any
    cache_dir: Path
    num_proc: int
    progress: Progress
    known: dict[tuple[Domain, str | None], TokenizedDomain]

    def __call__(self, domain: Domain, what: str, demonstration: str | None = None) -> TokenizedDomain:
        """`what`: the work's name before the domain's, for people."""
        if (domain, demonstration) not in self.known:
            with ranks_here().in_turn(), self.progress.task(f"{what} {domain.name}", 0) as advance:
                self.known[domain, demonstration] = prepare_domain(
                    domain,
                    self.tokenizer,
                    cache_dir=self.cache_dir,
                    num_proc=self.num_proc,
                    progress=_documents(advance),
                    demonstration=demonstration,
                )
        return self.known[domain, demonstration]

    def targets(self, aims: Mapping[str, Domain]) -> dict[str, TokenizedDomain]:
        """Those whose `train` split chooses mixtures, as the split that losses are read on."""
        found = {}
        for name, domain in aims.items():
            with naming_target(name):
                made = self(domain, "tokenise target")
            found[name] = replace(made, valid=made.train)
        return found


def _read_as(targets: Mapping[str, Domain]) -> dict[str, Domain]:
    """Targets with what they hold."""
    found = {}
    for name, domain in targets.items():
        with naming_target(name):
            found[name] = replace(domain, kind=target_kind(domain))
    return found


def check_apart(domains: Mapping[str, Domain], targets: Mapping[str, Domain]) -> None:
    """Refuse targets whose own files are trained on.

    Raises:
        ConfigError: All of them at once.
        DataError: A source is missing.
    """
    trained = (
        {file.path: name for name, d in domains.items() for file in resolve(d.train, domain=name)} if targets else {}
    )
    problems = []
    for name, target in targets.items():
        for split, source in (("valid", target.train), ("test", target.test)):
            with naming_target(name):
                files = resolve(source, domain=name) if source is not None else ()
            shared = [f.path for f in files if f.path in trained]
            if shared:
                problems.append(
                    f"targets.{name}.{split}: {shared[0]} is what domain {trained[shared[0]]!r} trains on; expected "
                    "text of its own, "
                    "or the target would only say how well its text was learned by heart"
                )
    if problems:
        raise ConfigError(problems)


def check_objective(objective: str, chats: list[str]) -> None:
    """Refuse conversations without an objective for them, and such an objective without conversations.

    Raises:
        ConfigError: They do not fit.
    """
    if objective == "causal_lm" and chats:
        raise ConfigError(
            f"objective: 'causal_lm', but domain {chats[0]!r} holds conversations; expected 'sft' or 'sdft' (or set "
            "the domain's "
            "`kind: text` and `field`)"
        )
    if objective != "causal_lm" and not chats:
        raise ConfigError(
            f"objective: {objective!r}, but no domain holds conversations; expected at least one with `messages`, or "
            "`prompt` and "
            "`completion`"
        )


def stop_ids(tokenizer: Any, splits: Mapping[str, TokenSplit]) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's EOS, and the one that the chat template puts there."""
    found = {eos_id(tokenizer)}
    for split in splits.values():
        mask = np.asarray(split.mask)
        ends = np.flatnonzero(np.diff(mask.astype(np.int8), append=0) < 0)
        last = set(np.unique(np.asarray(split.tokens)[ends]).tolist())
        found |= last if len(last) == 1 else set()
    return tuple(sorted(found))


def _documents(advance: Advance) -> Any:
    """Documents of one source as steps of a task; their total is not known before the end."""
    return lambda name, done, total: advance(done, total or 0)
