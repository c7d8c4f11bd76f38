"""What a domain is: a name and where its text lives. Pure data; reading it is `opmix.data`."""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from opmix.errors import ConfigError
from opmix.settings import Bounds, Count, Positive, Then, changed, internal, problems_error, settings

RowSchema = Literal["text", "messages", "prompt and completion", "conversations", "sharegpt", "instruction and output"]
"""What the rows of a source hold: a text, or a conversation in OpenAI's and TRL's two ways, as turns with `role` and `content` or with
`from` and `value` (ShareGPT), or as Alpaca's question and answer."""
CHAT_COLUMNS: dict[RowSchema, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt and completion": ("prompt", "completion"),
    "conversations": ("conversations",),
    "instruction and output": ("instruction", "output"),
}
"""What the rows of a schema must have; the first that fits counts. ShareGPT's are those of `conversations`."""
SourceFormat = Literal["jsonl", "text", "parquet", "arrow", "hub", "npy", "bin", "megatron", "datatrove", "litdata"]
_NOT_TOKENS: tuple[SourceFormat, ...] = ("jsonl", "text", "parquet", "arrow", "hub")
Split = Literal["train", "valid", "test"]
Kind = Literal["text", "chat", "choice"]
"""`choice`: questions with options, which only targets hold."""
Supervise = Literal["all", "last"]
Truncate = Literal["left", "right", "drop"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_SECRET = re.compile(r"(^|[-_])(token|key|secret|password|signature|sig|credential)s?$", re.IGNORECASE)
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,79}$")


PACKAGE = "package://"
COMPRESSED = (".gz", ".zst")
"""What files of text and JSON may end in besides."""
HUB = "hf://"
"""Start of the address of a dataset on the Hugging Face hub."""
PLACEHOLDER = "NAME-OR-FOLDER-OF-YOUR-MODEL"
"""What `opmix init` writes where no model is given."""


def is_url(path: str) -> bool:
    """Whether a path is an address such as `https://...` or `s3://...`, which is streamed.

    Examples:
        >>> is_url("https://example.org/a.jsonl"), is_url("package://stdlib/*.py"), is_url("a/b.jsonl")
        (True, False, False)
    """
    scheme, found, _ = path.partition("://")
    return bool(found) and scheme.isalnum() and not path.startswith((PACKAGE, HUB))


def _gives_away(path: str) -> bool:
    """Whether an address holds a password or a signature: it would stand in run folders, reports and messages."""
    if not is_url(path):
        return False
    found = urlsplit(path)
    keys = (key for key, _ in parse_qsl(found.query, keep_blank_values=True))
    return found.password is not None or any(_SECRET.search(key) for key in keys)


def located(path: str, base: Path) -> str:
    """A path of a configuration: relative to `base`, or `package://NAME/GLOB` inside an installed package (`stdlib`: Python's own).

    Raises:
        ConfigError: No such package is installed, a path out of it, or a text that no system takes for a path.
    """
    if is_url(path):
        return path
    if not path.startswith(PACKAGE):
        return str(user_path(path, base))
    name, _, inside = path.removeprefix(PACKAGE).partition("/")
    if ".." in Path(inside).parts or Path(inside).is_absolute():
        raise ConfigError(f"{path}: leads out of the package; expected a path inside it")
    if name == "stdlib":
        return str(Path(sysconfig.get_paths()["stdlib"]) / inside)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{path}: package {name!r} is not installed here; install it, or give a path")
    return str(Path(next(iter(spec.submodule_search_locations))) / inside)


def hub_dataset(address: str) -> dict[str, Any]:
    """What `hf://org/name[@revision][/config][:split]` says, as settings of a source.

    Raises:
        ConfigError: It names no dataset.

    Examples:
        >>> hub_dataset("hf://org/name/en:train[:1%]")
        {'paths': ('org/name',), 'format': 'hub', 'config_name': 'en', 'split': 'train[:1%]'}
    """
    name, colon, split = address.removeprefix(HUB).partition(":")
    parts = name.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts) or (colon and not split):
        raise ConfigError(f"{address}: no address of a dataset; expected {HUB}org/name[@revision][/config][:split]")
    found: dict[str, Any] = {"paths": ("/".join(parts[:2]),), "format": "hub"}
    found |= {"config_name": parts[2]} if len(parts) > 2 else {}
    return found | ({"split": split} if split else {})


def hub_address(source: Source) -> str:
    """The address of a hub source, as `hub_dataset` reads it.

    Examples:
        >>> hub_address(Source(**hub_dataset("hf://org/name@v1/en:test")))
        'hf://org/name@v1/en:test'
    """
    config = f"/{source.config_name}" if source.config_name else ""
    return f"{HUB}{source.paths[0]}{config}{f':{source.split}' if source.split else ''}"


def user_path(text: str | Path, base: Path | None = None) -> Path:
    """A path as somebody wrote it: `~` is expanded, relative to `base`.

    Raises:
        ConfigError: No path at all, no home folder of that user, or no text that the system takes (too long, a null character, half a
            surrogate, a circle of links).
    """
    try:
        path = (base or Path()) / Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path  # who reads it says what is wrong
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:100]
        raise ConfigError(f"{str(text)[:80]!r}: cannot be a path here ({why}); check the spelling") from error
    return path


@settings
class Source:
    """Where the documents of one split come from; a plain string or list of strings in YAML is `paths`.

    Examples:
        >>> Source(paths=("data/web/*.jsonl.gz",)).format is None   # told from the file name
        True
        >>> Source(paths=("HuggingFaceFW/fineweb",), format="hub", split="train").field
        'text'
    """

    paths: tuple[str, ...]
    """Files, globs, folders, or one hub name; or URLs of files, which are streamed."""
    format: SourceFormat | None = None
    """None: told from the file name (`.jsonl[.gz|.zst]`, `.json`, `.txt`, `.parquet`, `.npy`, `.bin`, a folder).
    `megatron` (`.bin` beside `.idx`), `datatrove` (`.ds` beside `.ds.index`) and `litdata` (`chunk-*.bin` beside `index.json`) must be
    said."""
    field: str = "text"
    """Column or JSON key that holds a document's text."""
    split: str | None = None
    """Hub and Arrow datasets with several splits: which one."""
    config_name: str | None = None
    """Hub datasets with several configurations: which one."""
    dtype: str = "uint16"
    """Raw `.bin` files of token ids: their integer type."""
    max_tokens: Count | None = None
    """Read no further than the document that completes so many tokens; None: to the end. For streams that have none, or too far away."""
    in_place: bool = False
    """Training reads files of token ids where they lie: nothing of them is copied or hashed but what is held out."""

    def __post_init__(self) -> None:
        if not self.paths or any(not path for path in self.paths):
            raise ConfigError("paths: empty; give at least one file, glob, folder or hub name")
        if any(_gives_away(path) for path in self.paths):
            raise ConfigError(
                "paths: a URL with a password, token or signature in it; expected an address alone: give credentials "
                "where the client looks for them (its environment variables, ~/.netrc, ~/.aws), or copy the file"
            )
        if self.in_place and self.format in _NOT_TOKENS:
            raise ConfigError(f"in_place: of {self.format}; expected files of token ids; leave it out")
        if self.in_place and self.max_tokens is not None:
            raise ConfigError("max_tokens: beside in_place, which reads no further than training goes; leave one out")

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """A path or a list of them stands for `paths`."""
        content = {"paths": value} if isinstance(value, str | Path | list | tuple) else value
        if not isinstance(content, Mapping) or not isinstance(content.get("paths"), str | Path | list | tuple):
            return content
        given = content["paths"]
        several = given if isinstance(given, list | tuple) else (given,)
        paths = tuple(str(p) if isinstance(p, Path) else p for p in several)
        if any(isinstance(path, str) and path.startswith(HUB) for path in paths):
            if len(paths) > 1:
                raise ConfigError(
                    f"paths: {', '.join(map(str, paths))}; expected one hub dataset, or files; make them domains"
                )
            return {**hub_dataset(paths[0]), **{k: v for k, v in content.items() if k != "paths"}}
        return {**content, "paths": paths}

    def located(self, base: Path) -> Source:
        """With relative paths resolved against the configuration's folder."""
        return self if self.format == "hub" else changed(self, paths=tuple(located(p, base) for p in self.paths))


@settings
class ChatOptions:
    """How the conversations of a chat domain become rows to train on."""

    template: str | None = internal(default=None)
    """Jinja text; None: the tokenizer's own chat template."""
    supervise: Supervise = "all"
    """Loss on every answer, or on the last of each conversation only (self-distillation: always the last)."""
    packing: bool = True
    """Several whole conversations to a row, each attending to itself only; or one to a row (self-distillation: always)."""
    truncate: Truncate = "drop"
    """What a conversation longer than a row loses: tokens at its left or right end, or its place."""


@settings
class Domain:
    """A named source of training text with its own held-out sets (method.md section 2); a plain string in YAML is `train`.

    A missing `valid` or `test` is split off `train` by document, deterministically; `valid` chooses
    mixtures and `test` judges them, so they are never the same documents.
    """

    name: str = internal(default="")
    """Empty: not named yet, as in a file, where the name is the key."""
    train: Source
    valid: Source | None = None
    test: Source | None = None
    max_epochs: Positive | None = None
    """How often the training tokens may be repeated in one stage; None: no limit."""
    bos: bool | None = None
    """Whether a text begins with the tokenizer's BOS; None: where the tokenizer itself puts one. Token files and conversations are
    taken as they are."""
    holdout: Annotated[float, Bounds(gt=0, lt=0.5)] = 0.05
    """Share of the documents split off `train` for each missing held-out set, in (0, 0.5)."""
    kind: Kind | None = None
    """None: told from the first row of `train`."""
    chat: ChatOptions = ChatOptions()

    def __post_init__(self) -> None:
        problems = []
        if self.name and not _NAME.fullmatch(self.name):
            problems.append(
                f"domain name {self.name!r}: expected 1-80 letters, digits, '_', '-' or '.', starting with a letter or "
                "digit"
            )
        if self.max_epochs is not None and not self.max_epochs > 0:
            problems.append(f"domain {self.name!r}: max_epochs is {self.max_epochs}; expected a positive number")
        if not 0 < self.holdout < 0.5:
            problems.append(f"domain {self.name!r}: holdout is {self.holdout}; expected a share in (0, 0.5)")
        for split in ("valid", "test"):
            if (source := getattr(self, split)) is not None and source.in_place:
                problems.append(
                    f"domain {self.name!r}: {split}.in_place: what judges is measured whole; expected it of train "
                    "alone; leave it out, with max_tokens where there is much"
                )
        if self.train.in_place and self.kind in ("chat", "choice"):
            problems.append(
                f"domain {self.name!r}: train.in_place: of kind {self.kind}; expected token ids; leave it out"
            )
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """A path or a list of them stands for `train`."""
        return {"train": value} if isinstance(value, str | Path | list) else value

    def located(self, base: Path, template: str | None = None) -> Domain:
        """With relative paths resolved against the configuration's folder.

        Args:
            base: That folder.
            template: Jinja text of the chat template; None: the tokenizer's own.

        Raises:
            ConfigError: A path names a package that is not installed.
        """
        held = {split: source.located(base) for split in SPLITS if (source := getattr(self, split)) is not None}
        return changed(self, chat=changed(self.chat, template=template), **held)


def _named(domains: dict[str, Domain]) -> dict[str, Domain]:
    """Every domain with its key as its name."""
    problems, named = [], {}
    alike: dict[str, str] = {}
    for name, domain in domains.items():
        if (other := alike.setdefault(name.casefold(), name)) != name:
            problems.append(
                f"{name}: differs from {other!r} by upper and lower case alone; expected names that stay apart as "
                "names of files; rename one of them"
            )
        try:
            named[name] = changed(domain, name=name)
            if domain.kind == "choice":
                problems.append(
                    f"{name}.kind: 'choice' is of targets, which are compared and never trained on; expected text or "
                    "chat: move it to targets, or convert its rows to prompt and completion"
                )
            if not name:
                problems.append("domain name '': expected 1-80 letters or digits")
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise problems_error(problems)
    return named


Domains = Annotated[dict[str, Domain], Then(_named)]
"""Domains of a file by name."""
