"""What a probe changes of the model: how it is attached, kept in a folder, and read back as deltas to interpolate."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from opmix.mixing.mixture import FloatArray
from opmix.models import lora_targets
from opmix.probes.adapters import DeltaSet
from opmix.probes.interpolation import Backend, Proxies, make_proxies
from opmix.probes.parts import saving_only
from opmix.probes.preserve_state import preserve_model_state
from opmix.probes.settings import ProbeSettings

_WEIGHTS = "adapter_model.safetensors"


class ProbeKind(Protocol):
    """The one place that knows what a probe is made of."""

    def attached(self, model: PreTrainedModel, settings: ProbeSettings, name: str) -> AbstractContextManager[Any]:
        """The model to train, only what the probe changes trainable; the model is as it was when the context is left."""

    def save(self, attached: Any, name: str, folder: Path) -> None:
        """Keep what was trained, whole or not at all."""

    def is_whole(self, folder: Path) -> bool:
        """Whether a folder holds a probe whose files can be read to their end."""

    def interpolated(
        self, model: PreTrainedModel, settings: ProbeSettings, folders: Sequence[Path], backend: Backend
    ) -> AbstractContextManager[tuple[Proxies, FloatArray]]:
        """Proxies over kept probes, named by `names_of`, and the inner products (P, P) of their deltas."""


def names_of(num: int) -> tuple[str, ...]:
    """Names of P probes in the model that carries them."""
    return tuple(f"probe_{number}" for number in range(num))


class AdapterProbes:
    """LoRA adapters of PEFT, with modules trained in full beside them where the settings say so."""

    @contextmanager
    def attached(self, model: PreTrainedModel, settings: ProbeSettings, name: str) -> Iterator[PeftModel]:
        """See `ProbeKind`."""
        with preserve_model_state(model):
            # Every adapter starts from the same factors: averaging then interpolates paths with a common start.
            wrapped = _wrapped(model, settings, [name])
            with saving_only(wrapped, name):
                yield wrapped

    def save(self, attached: PeftModel, name: str, folder: Path) -> None:
        """See `ProbeKind`; an ordinary PEFT adapter."""
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        attached.save_pretrained(str(temporary), selected_adapters=[name], save_embedding_layers=False)
        inside = temporary / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        inside.replace(folder)
        shutil.rmtree(temporary, ignore_errors=True)

    def is_whole(self, folder: Path) -> bool:
        """See `ProbeKind`."""
        return _is_readable(folder / _WEIGHTS)

    @contextmanager
    def interpolated(
        self, model: PreTrainedModel, settings: ProbeSettings, folders: Sequence[Path], backend: Backend
    ) -> Iterator[tuple[Proxies, FloatArray]]:
        """See `ProbeKind`."""
        names = names_of(len(folders))
        with preserve_model_state(model):
            wrapped = _wrapped(model, settings, names)
            for name, folder in zip(names, folders, strict=True):
                set_peft_model_state_dict(wrapped, load_file(folder / _WEIGHTS), adapter_name=name)
            yield make_proxies(wrapped, names, backend=backend), DeltaSet.from_peft(wrapped, names).gram()


ADAPTERS = AdapterProbes()


def _wrapped(model: PreTrainedModel, settings: ProbeSettings, names: Sequence[str]) -> PeftModel:
    """The model with new adapters; the last is the active one."""
    config = lora_config(settings, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft remarks on tied embeddings, which are not adapted here
        wrapped = get_peft_model(model, config, adapter_name=names[0])
        for name in names[1:]:
            wrapped.add_adapter(name, lora_config(settings, model))
    wrapped.set_adapter(names[-1])
    return wrapped


def lora_config(settings: ProbeSettings, model: PreTrainedModel) -> LoraConfig:
    """The adapter's configuration for this architecture."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        target_modules=list(settings.target_modules) if settings.target_modules else lora_targets(model),
        modules_to_save=list(settings.modules_to_save) or None,
        task_type="CAUSAL_LM",
    )


def _is_readable(file: Path) -> bool:
    """Whether a safetensors file is there and as long as its header says."""
    try:
        with safe_open(file, framework="pt") as content:
            return bool(content.keys())
    except (OSError, SafetensorError):
        return False
