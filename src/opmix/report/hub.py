"""A run folder on the Hugging Face hub: decision, tables, report and card; no weights."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opmix.errors import ConfigError, StoreError
from opmix.report.card import run_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LEFT_OUT = (
    "lock",
    "**/.writing-*",
    "probes/**",
    "**/probes/**",
    "**/checkpoints/**",
    "tasks/**",
    "logs/**",
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.npy",
    "*.npz",
    "README.md",
)
"""Patterns that stay here: weights, evaluations by sequence, and what only a run that goes on needs."""


def push_run(
    run: str | Path, repo: str, *, private: bool = True, token: str | None = None, api: HfApi | None = None
) -> str:
    """Push a finished run's folder as a dataset repository, with the card as its README; returns its address.

    Args:
        run: Folder of a finished search, fit or life.
        repo: `org/name`; made where it does not exist.
        private: Of a repository that is made.
        token: Of the hub; None: that of `hf auth login`.
        api: In place of `huggingface_hub.HfApi()`.

    Raises:
        StoreError: No finished run, or the hub cannot be reached or refuses; what was pushed before stays as it was.
        ConfigError: `repo` names no repository.
    """
    folder = Path(run)
    card = run_card(folder)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f"repo: {repo!r}; expected ORG/NAME on the hub")
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if api is None and constants.HF_HUB_OFFLINE:
        raise StoreError("HF_HUB_OFFLINE is set, so nothing is pushed; unset it, and run the same again")
    api = api or HfApi(token=token)
    unreached: tuple[type[Exception], ...] = (OSError, HfHubHTTPError, *_no_connection())
    try:
        made: Any = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            ignore_patterns=list(LEFT_OUT),
            commit_message="Data mixture found by opmix",
        )
        readme = card.into("---\ntags:\n- opmix\n---\n\n# Data mixture\n").encode()
        api.upload_file(path_or_fileobj=readme, path_in_repo="README.md", repo_id=repo, repo_type="dataset")
    except HFValidationError as error:
        raise ConfigError(f"repo: {repo!r}: {error}; expected ORG/NAME on the hub") from error
    except unreached as error:
        raise StoreError(
            f"{repo}: the hub cannot be reached or refuses ({type(error).__name__}: {error}); look at the connection "
            "and at `hf auth whoami`, and run the same again"
        ) from error
    return str(made)


def _no_connection() -> tuple[type[Exception], ...]:
    """What the hub's client raises without a network: of the HTTP library that its version is made on."""
    found: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            found.append(import_module(name).TransportError)
    return tuple(found)
