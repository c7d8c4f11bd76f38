"""What all stages of a life share: run folder, tokenizer, tokenised data, and models loaded from disk as they are needed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from opmix.compute.budget import spread
from opmix.compute.flops import ModelShape
from opmix.config import ModelConfig
from opmix.data import iter_documents, supervised_per_row
from opmix.data.chat.conversation import domain_kind, iter_conversations
from opmix.data.sources import resolve, source_fingerprint
from opmix.data.tokenization import tokenizer_fingerprint
from opmix.domain import Domain
from opmix.errors import OpMixError, StoreError
from opmix.lifecycle.data_file import NAME as DATA
from opmix.lifecycle.data_file import DataFile
from opmix.lifecycle.likeness import start_config, start_likeness
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.stages import resolve as resolve_stages
from opmix.lifecycle.steps import DataFacts, StageRows
from opmix.models.files import located
from opmix.models.from_scratch import new_model, train_tokenizer
from opmix.models.layers import model_fingerprint, model_shape
from opmix.models.load import load_model, load_tokenizer
from opmix.progress import Progress
from opmix.report.card import Card, CardPart
from opmix.runs.files import default_cache_dir, files_signature, json_of, writing_prefix
from opmix.runs.store import RunStore, fingerprint
from opmix.runs.trace import span
from opmix.scores.task_questions import without_tasks
from opmix.settings import as_json
from opmix.training.factory import TrainerFactory
from opmix.training.settings import DistillationSettings
from opmix.training.stage_data import StageData, prepare_data

Place = Literal["device", "parts", "host"]
"""Of a loaded model: whole on the device, a part of it on that of each rank, or whole in the memory of the host."""


@dataclass(kw_only=True)
class LifeRuntime:
    """Everything a stage needs that is not its own."""

    life: LifecycleConfig
    base: Path
    store: RunStore
    progress: Progress
    make_trainer: TrainerFactory | None
    tokenizer: Any
    data: StageData
    """Every domain of the life, as held-out losses are measured."""
    stage_data: tuple[StageData, ...]
    """By stage: what it trains on, and the objective."""
    facts: DataFacts
    files: Mapping[str, Mapping[str, Sequence[int]]]
    """By domain and path: size and time."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.store.folder

    def record_facts(self, file: str = DATA) -> None:
        """Keep what `opmix status` needs to know of the data without reading them."""
        DataFile(facts=self.facts, files=self.files, tokens=self.data.available_tokens).write(self.folder, file)

    def likeness(self) -> Any:
        """The model of this life without its weights."""
        return start_likeness(self.life, self.base)

    @property
    def place(self) -> Place:
        """Where models are that are measured and searched with."""
        return "parts" if spread(self.life.search.trainer) else "device"

    @property
    def whole_place(self) -> Place:
        """Where models are that are whole in a process: those that accelerate is to spread, and what one rank does alone."""
        return "host" if spread(self.life.search.trainer) else "device"

    def start_model(self, seed: int, place: Place | None = None) -> Any:
        """The model before the first stage."""
        if self.life.architecture is None:
            assert self.life.model is not None
            return self.load(located(self.life.model.name, self.base), place=place)
        if (place or self.place) == "parts":
            return self._made_in_parts(seed)
        return new_model(self.life.architecture, self.tokenizer, seed)

    def _made_in_parts(self, seed: int) -> Any:
        """A new model goes through a file, of which each rank reads its part."""
        ranks, folder = self.store.ranks, self.folder / f"{writing_prefix()}new"
        with ranks.agreed():
            if ranks.first:
                self.start_model(seed, "host").save_pretrained(folder)
        folder = ranks.shared(folder)
        try:
            return self.load(folder)
        finally:
            ranks.together()
            if ranks.first:
                shutil.rmtree(folder, ignore_errors=True)

    def load(self, name: str | Path, expected: str | None = None, place: Place | None = None) -> Any:
        """A checkpoint of this life, in float32 unless the configuration says otherwise (weights that are trained need it).

        Args:
            name: Folder or hub name.
            expected: Fingerprint.
            place: None: `self.place`.

        Raises:
            StoreError: It is not the model that was recorded (`expected` is its fingerprint).
        """
        wanted = self.life.model or ModelConfig(name="")
        dtype = "float32" if wanted.dtype == "auto" else wanted.dtype
        local, place = Path(name).is_dir(), place or self.place
        model = load_model(
            name,
            dtype=dtype,
            device="cpu" if place == "host" else wanted.device,
            sharded=place == "parts",
            revision=None if local else wanted.revision,
            trust_remote_code=wanted.trust_remote_code,
            attn_implementation=wanted.attn_implementation,
        )
        if expected is not None and model_fingerprint(model) != expected:
            kind, weights = type(model).__name__, sum(p.numel() for p in model.parameters())
            raise StoreError(
                f"{name}: holds a {kind} of {weights:,} weights that is not the model this run trained; put the "
                "trained one back, or "
                "delete the folder to have it trained again"
            )
        return model

    @span("save a model", "saving")
    def save(self, model: Any, folder: Path, parts: Sequence[CardPart] = ()) -> str:
        """Save model, tokenizer and card (`parts`: what it was trained on) whole or not at all; returns the model's fingerprint."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=writing_prefix()))
        try:
            model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            made = model_fingerprint(model)
            Card(parts=parts, fingerprints={"model": made, "tokenizer": self.facts.tokenizer}).write(temporary)
            temporary.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return made

    def check_room(self, what: str, num_bytes: float) -> None:
        """Refuse to begin what the disk has no room for.

        Raises:
            StoreError: Less is free than will be written.
        """
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes:
            raise StoreError(
                f"{self.folder}: {what} needs about {num_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; free space "
                "and run again, "
                "or set keep.models: last"
            )


@span("read the data", "loading")
def make_runtime(
    life: LifecycleConfig, base: Path, store: RunStore, progress: Progress, make_trainer: TrainerFactory | None
) -> LifeRuntime:
    """Tokenizer and data of a life; everything that can fail cheaply fails here.

    Raises:
        OpMixError: A source or the tokenizer cannot be read, or they do not fit each other.
    """
    stages = resolve_stages(life)
    used = dict.fromkeys([*(life.old_mixture or ()), *(name for stage in stages for name in stage.domains)])
    template = ModelConfig(name="", chat_template=life.chat_template).template(base)
    domains = {n: life.domains[n].located(base, template) for n in used}
    cache_dir = Path(life.search.cache_dir) if life.search.cache_dir else default_cache_dir()
    aims = without_tasks(life.targets, base, cache_dir)
    targets = {n: t.domain(n, base, template) for n, t in aims.items()}
    tokenizer = _tokenizer(life, base, store, domains, progress)
    known: dict[Any, Any] = {}
    told = life.search

    def prepared(names: Iterable[str], objective: Any = None, sdft: DistillationSettings = told.sdft) -> StageData:
        return prepare_data(
            {n: domains[n] for n in names},
            tokenizer,
            targets=targets,
            objective=objective,
            sdft=sdft.located(base),
            sequence_length=told.sequence_length,
            cache_dir=cache_dir,
            num_proc=told.num_proc,
            progress=progress,
            limit=_positions(life, base),
            known=known,
        )

    data = prepared(domains)
    offers = tuple(prepared(s.domains, s.config.objective, s.settings.sdft) for s in stages)
    facts = DataFacts(
        tokenizer=tokenizer_fingerprint(tokenizer),
        rows={n: len(r) for n, r in data.train.items()},
        model=_signature(life, base),
        fingerprints={n: fingerprint(data.only([n]).fingerprint) for n in (*domains, *targets)},
        stages=tuple(
            StageRows(
                rows={n: len(r) for n, r in offer.train.items()},
                worth={n: supervised_per_row(r) for n, r in offer.train.items()},
                objective=offer.objective.name,
            )
            for offer in offers
        ),
    )
    return LifeRuntime(
        life=life,
        base=base,
        store=store,
        progress=progress,
        make_trainer=make_trainer,
        tokenizer=tokenizer,
        data=data,
        stage_data=offers,
        facts=facts,
        files={n: _files(d) for n, d in {**domains, **targets}.items()},
    )


def _positions(life: LifecycleConfig, base: Path) -> int | None:
    """Tokens the model can read at once, told from its configuration; None: not told."""
    try:
        config = start_config(life, base)
    except OpMixError:
        return None  # what is wrong with it is said where the model is made or loaded
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def _signature(life: LifecycleConfig, base: Path) -> str:
    if life.model is None:
        return ""
    place = Path(located(life.model.name, base))
    return files_signature(place) if place.exists() else f"{life.model.name}@{life.model.revision}"


def _tokenizer(
    life: LifecycleConfig, base: Path, store: RunStore, domains: Mapping[str, Domain], progress: Progress
) -> Any:
    wanted = life.tokenizer
    if wanted is None or wanted.name is not None:
        model = life.model or ModelConfig(name="")
        name = wanted.name if wanted is not None and wanted.name is not None else (model.tokenizer or model.name)
        return load_tokenizer(located(name, base), revision=model.revision, trust_remote_code=model.trust_remote_code)
    template = ModelConfig(name="", chat_template=life.chat_template).template(base)
    first = [domains[n] for n in resolve_stages(life)[0].domains]
    folder = store.folder / "tokenizer"
    inputs = {
        **{k: v for k, v in as_json(wanted).items() if k != "name"},
        "chat_template": template,
        "data": [source_fingerprint(d.train, domain=d.name) for d in first],
        "fields": [d.train.field for d in first],
    }

    def work() -> dict[str, Any]:
        progress.note(f"training a tokenizer of {wanted.vocab_size} entries on {len(first)} domains")
        texts = (t for d in first for t in islice(_texts(d), wanted.documents))
        made = train_tokenizer(
            texts, wanted.vocab_size or 0, special_tokens=wanted.special_tokens, chat_template=template
        )
        shutil.rmtree(folder, ignore_errors=True)
        made.save_pretrained(folder)
        return {"size": len(made)}

    store.step("tokenizer", inputs, work, intact=lambda: _is_whole(folder))
    return load_tokenizer(folder)


def _is_whole(tokenizer: Path) -> bool:
    """Whether the files of a tokenizer that was trained here can be read: a power failure may leave them empty."""
    try:
        return all(json_of(tokenizer / name) for name in ("tokenizer.json", "tokenizer_config.json"))
    except (OSError, ValueError, RecursionError):
        return False


def _files(domain: Domain) -> dict[str, list[int]]:
    """Size and time of every file of a domain."""
    sources = [s for s in (domain.train, domain.valid, domain.test) if s is not None]
    paths = [Path(f.path) for s in sources for f in resolve(s, domain=domain.name)]
    return {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in paths if p.is_file()}


def _texts(domain: Domain) -> Iterator[str]:
    """What a tokenizer learns from: documents, or the turns of conversations."""
    if domain_kind(domain) == "text":
        return iter_documents(domain.train, domain=domain.name)
    return ("\n".join(m.content for m in c.messages) for c in iter_conversations(domain.train, domain=domain.name))


def shape_of(model: Any) -> dict[str, int]:
    """For FLOP counts and estimates, as a record keeps it."""
    shape = model_shape(model)
    parameters = sum(p.numel() for p in model.parameters())
    return {**vars(shape), "parameters": parameters}


def shape_from(record: Mapping[str, Any]) -> ModelShape:
    """What `shape_of` recorded."""
    return ModelShape(**{name: int(record[name]) for name in ("matmul_parameters", "num_layers", "attention_width")})
