"""Tokenised splits on disk: written once, under a fingerprint of all they depend on, and mapped into memory.

A split is a folder of three flat files (four with a loss mask) and a small JSON that says what is in them. It is written under a
temporary name and renamed when complete, so that a folder with its final name is whole; of two processes that
write the same one, the second finds the first's and drops its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from opmix.data.in_place import TokensInPlace
from opmix.domain import Split
from opmix.errors import DataError
from opmix.runs.files import remove_leftovers, writing_prefix
from opmix.runs.lock import alone_in

FORMAT_VERSION = 1
Int64Array = npt.NDArray[np.int64]
TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
MaskArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSplit:
    """The token ids of one split of one domain, documents one after the other, each ended by EOS or as its chat template ends it."""

    domain: str
    split: Split
    fingerprint: str
    """Of the source's bytes, the split rule and the tokenizer; the cache's key."""
    tokens: TokenArray | TokensInPlace
    """(num_tokens,), mapped from the cache when `folder` is set, or where they lie."""
    offsets: Int64Array
    """(num_documents + 1,): document i is `tokens[offsets[i]:offsets[i + 1]]`; empty where documents are not `counted`."""
    byte_counts: Int64Array
    """(num_documents,): UTF-8 bytes of each document's text, EOS not counted; of a conversation, of its supervised text."""
    folder: Path | None = None
    mask: MaskArray | None = None
    """(num_tokens,): 1 where a token is supervised, else 0; None: all are (text)."""

    @property
    def num_tokens(self) -> int:
        """Tokens, one EOS per document included."""
        return len(self.tokens)

    @cached_property
    def supervised_tokens(self) -> int:
        """Tokens that the loss is on: what mixtures are shares of."""
        return self.num_tokens if self.mask is None else int(np.count_nonzero(self.mask))

    @property
    def counted(self) -> bool:
        """Whether documents and bytes are known: not of what is read in place."""
        return not isinstance(self.tokens, TokensInPlace)

    @property
    def num_documents(self) -> int:
        """Documents, where they are `counted`."""
        return len(self.byte_counts)

    def starts(self, first: int, last: int) -> Int64Array:
        """Where documents begin among the tokens `first` to before `last`, (m,)."""
        if isinstance(self.tokens, TokensInPlace):
            return self.tokens.starts(first, last)
        low, high = np.searchsorted(self.offsets, [first, last])
        return np.asarray(self.offsets[low:high], dtype=np.int64)

    @cached_property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return int(self.byte_counts.sum())

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per supervised token, EOS counted among the tokens."""
        return self.num_bytes / self.supervised_tokens

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a place on disk: a worker maps the files again and copies nothing."""
        if self.folder is not None:
            return _reload, (self.folder, self.domain, self.split, self.fingerprint)
        mask = None if self.mask is None else np.array(self.mask)
        tokens = self.tokens if isinstance(self.tokens, TokensInPlace) else np.array(self.tokens)
        values = (tokens, np.array(self.offsets), np.array(self.byte_counts), mask)
        return _rebuild, (self.domain, self.split, self.fingerprint, *values)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedDomain:
    """A domain ready for packing: train, valid and test, tokenised."""

    name: str
    train: TokenSplit
    valid: TokenSplit
    test: TokenSplit

    @cached_property
    def fingerprint(self) -> str:
        """Of all three splits; the domain's name is not part of it."""
        parts = (self.train.fingerprint, self.valid.fingerprint, self.test.fingerprint)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def __getitem__(self, split: Split) -> TokenSplit:
        """The split of that name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]


def _rebuild(
    domain: str, split: Split, fingerprint: str, tokens: Any, offsets: Any, counts: Any, mask: Any
) -> TokenSplit:
    return TokenSplit(
        domain=domain,
        split=split,
        fingerprint=fingerprint,
        tokens=tokens,
        offsets=offsets,
        byte_counts=counts,
        mask=mask,
    )


def _reload(folder: Path, domain: str, split: Split, fingerprint: str) -> TokenSplit:
    found = _open(folder, domain, split, fingerprint)
    if found is None:
        raise DataError(
            f"domain {domain!r}: the tokenised {split} split in {folder} is gone or damaged; "
            "expected the files that were there before; prepare the domain again"
        )
    return found


def split_folder(cache_dir: Path, fingerprint: str) -> Path:
    """Where a split of that fingerprint is, or would be."""
    return cache_dir / f"tokens-{fingerprint}"


def load_split(cache_dir: Path, fingerprint: str, *, domain: str, split: Split) -> TokenSplit | None:
    """A split from the cache, mapped; None if it is not there or its files are of the wrong length."""
    return _open(split_folder(cache_dir, fingerprint), domain, split, fingerprint)


def _open(folder: Path, domain: str, split: Split, fingerprint: str) -> TokenSplit | None:
    try:
        about = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        dtype, tokens, documents = (
            np.dtype(about["dtype"]),
            int(about["num_tokens"]),
            int(about["num_documents"]),
        )
        lengths = {"tokens.bin": (dtype, tokens), "offsets.bin": (np.dtype("<i8"), documents + 1)}
        lengths["bytes.bin"] = (np.dtype("<i8"), documents)
        if about.get("masked"):
            lengths["mask.bin"] = (np.dtype("u1"), tokens)
        for name, (kind, count) in lengths.items():
            if (folder / name).stat().st_size != count * kind.itemsize:
                return None
        arrays = [np.memmap(folder / name, dtype=kind, mode="r") for name, (kind, _) in lengths.items()]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenSplit(
        domain=domain,
        split=split,
        fingerprint=fingerprint,
        tokens=arrays[0],
        offsets=arrays[1],
        byte_counts=arrays[2],
        mask=arrays[3] if len(arrays) > 3 else None,
        folder=folder,
    )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the system says about a full, read-only or missing disk into an error that names the folder.

    Raises:
        DataError: The system refused.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"token cache {folder}: cannot be written ({error.strerror or error}); expected a writable "
            "folder with room for the tokens; free space there, or choose another cache folder"
        ) from error


class SplitWriter:
    """Writes one split; a context manager that leaves nothing behind unless `commit` was called.

    Raises:
        DataError: The cache folder cannot be made or written.
    """

    def __init__(self, cache_dir: Path, fingerprint: str, dtype: np.dtype[Any], *, masked: bool = False) -> None:
        self._cache_dir, self._fingerprint, self._dtype, self._masked = cache_dir, fingerprint, dtype, masked
        self.num_tokens = 0
        self.num_documents = 0
        self._files: dict[str, IO[bytes]] = {}
        with disk_errors(cache_dir):
            cache_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(cache_dir)
            self._folder = Path(tempfile.mkdtemp(prefix=writing_prefix(), dir=cache_dir))
            try:
                for name in ("tokens.bin", "offsets.bin", "bytes.bin", *(["mask.bin"] if masked else [])):
                    self._files[name] = (self._folder / name).open("wb")
                self._files["offsets.bin"].write(bytes(8))
            except OSError:
                self.discard()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(
        self, ids: npt.NDArray[Any], lengths: Int64Array, byte_counts: Int64Array, mask: MaskArray | None = None
    ) -> None:
        """Append n documents: `ids` one after the other; `lengths` (in ids) and `byte_counts` are (n,), `mask` is as long as `ids`."""
        ends = self.num_tokens + np.cumsum(lengths)
        with disk_errors(self._cache_dir):
            self._files["tokens.bin"].write(ids.astype(self._dtype, copy=False).tobytes())
            self._files["offsets.bin"].write(ends.astype("<i8").tobytes())
            self._files["bytes.bin"].write(byte_counts.astype("<i8").tobytes())
            if mask is not None:
                self._files["mask.bin"].write(mask.astype("u1").tobytes())
        self.num_tokens += len(ids)
        self.num_documents += len(lengths)

    def commit(self) -> None:
        """Give the split its final name; if another process did so meanwhile, keep that one."""
        target = split_folder(self._cache_dir, self._fingerprint)
        about = {
            "format": FORMAT_VERSION,
            "dtype": self._dtype.str,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            **({"masked": True} if self._masked else {}),
        }
        with disk_errors(self._cache_dir):
            for file in self._files.values():
                file.close()
            (self._folder / "split.json").write_text(json.dumps(about), encoding="utf-8")
            self._folder.chmod(0o755)  # mkdtemp's folders are their maker's alone; a cache may be shared
            for whole in (self._move, self._replace_damaged):
                if whole(target):
                    return
        raise DataError(f"token cache {target}: another process keeps replacing it; use another cache folder")

    def _move(self, target: Path) -> bool:
        try:
            self._folder.rename(target)
        except OSError:
            # A folder of that name is in the way: another process's whole one, or a damaged one.
            if not target.exists():
                raise
            return _open(target, "", "train", self._fingerprint) is not None
        return True

    def _replace_damaged(self, target: Path) -> bool:
        with alone_in(self._cache_dir):
            if self._move(target):  # another process has replaced it meanwhile
                return True
            aside = Path(tempfile.mkdtemp(prefix=writing_prefix(), dir=self._cache_dir))
            target.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            return self._move(target)

    def discard(self) -> None:
        """Close and remove what is still under the temporary name."""
        for file in self._files.values():
            # Closing flushes; on a full disk that fails again, and the file is about to go anyway.
            _quietly(file.close)
        shutil.rmtree(self._folder, ignore_errors=True)


def _quietly(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError:
        return
