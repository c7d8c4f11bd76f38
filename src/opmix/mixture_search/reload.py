"""A finished search, loaded again from its run folder: configuration, table, law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opmix.config import SearchConfig, parse_config
from opmix.errors import ConfigError, StoreError
from opmix.mixing.design import StageDesign
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixture_search.context import SearchContext
from opmix.protocols.mixing_method import LawProposal, Simulation
from opmix.results.manifest import Manifest
from opmix.results.mixture import MixtureFile
from opmix.settings.loading import without_removed


@dataclass(frozen=True, kw_only=True)
class LoadedSearch:
    """A finished search, loaded again: nothing of it is trained twice."""

    context: SearchContext
    design: StageDesign
    simulated: Simulation
    proposal: LawProposal
    """Law and optimum; without the gate that a search ends with."""
    recommended: Mixture
    """What the search said in the end."""


def configuration_of(folder: Path, model: Any) -> tuple[SearchConfig, Path]:
    """What a finished search was told, and the folder that its relative paths start from.

    Raises:
        StoreError: No finished search there.
        ConfigError: It had a model object, and none is given.
    """
    manifest = Manifest.find(folder)
    if manifest is None:
        raise StoreError(f"{folder}: no manifest.json; expected the --out folder of `opmix search`")
    if manifest.command != "search" or manifest.config is None or not (folder / "mixture.json").is_file():
        raise StoreError(
            f"{folder}: holds a run of {manifest.command!r}; expected a finished `opmix search` "
            "(a law from other people's runs has no probes to verify)"
        )
    content = manifest.config
    if content["model"]["name"] == "<model object>" and model is None:
        raise ConfigError(
            "model: the search was given a model object; call opmix.mixture_search.verify.verify_run with the same "
            "model and tokenizer"
        )
    return parse_config(without_removed(content), where=str(folder / "manifest.json")), Path(
        manifest.base or Path.cwd()
    )


def load_search(context: SearchContext) -> LoadedSearch:
    """Table, law and decision of a prepared context; every step is found in the run folder."""
    found = context.method.search(context)
    said = MixtureFile.read(context.store.folder).mixture
    return LoadedSearch(
        context=context,
        design=found.design,
        simulated=found.simulated,
        recommended=Mixture.of(said),
        proposal=found.proposal,
    )


def reference_of(found: LoadedSearch) -> str:
    """Name, among the measured, of the probe trained on the mixture in use; may not be there."""
    current = found.context.problem.current.weights
    same = [
        n for n, row in zip(found.design.probes.probes, found.design.probes.R, strict=True) if among(row, [current])
    ]
    return f"probe {same[0]}" if same else "current"


def among(row: FloatArray, rows: Sequence[FloatArray]) -> bool:
    """Whether a mixture is one of several."""
    return any(np.allclose(row, other, atol=1e-6) for other in rows)
