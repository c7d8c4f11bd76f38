"""What a probe changes of the model: how it is attached, kept in a folder, and read back as deltas to interpolate."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from opmix.errors import AdapterError
from opmix.mixing.mixture import FloatArray
from opmix.models.layers import adapter_parameters, base_modules, base_parameters, lora_targets
from opmix.models.sharded import is_sharded
from opmix.probes.adapter_rules import check_config, check_layer
from opmix.probes.adapters import DeltaSet
from opmix.probes.evaluation import device_of
from opmix.probes.interpolation import Backend, Proxies, make_proxies
from opmix.probes.merging import why_not_mergeable
from opmix.probes.parts import saving_only
from opmix.probes.preserve_state import preserve_model_state
from opmix.probes.settings import ProbeSettings
from opmix.runs.files import regular
from opmix.settings.loading import nearest

_WEIGHTS, _DELTAS = "adapter_model.safetensors", "delta.safetensors"


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A model while a probe is trained on it."""

    model: Any
    adapter_parameters: int | None
    """Weights of the adapter as FLOPs are counted, see `ProbeWeights.priced`; None: the model's own are trained."""
    save: Callable[[Path], None]
    """Keep what was trained in a folder, whole or not at all."""


class ProbeKind(Protocol):
    """The one place that knows what a probe is made of."""

    def attached(self, model: PreTrainedModel, settings: ProbeSettings, name: str) -> AbstractContextManager[Attached]:
        """The model to train, only what the probe changes trainable; the model is as it was when the context is left."""

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
    def attached(self, model: PreTrainedModel, settings: ProbeSettings, name: str) -> Iterator[Attached]:
        """See `ProbeKind`."""
        with preserve_model_state(model):
            # Every adapter starts from the same factors: averaging then interpolates paths with a common start.
            in_full = probe_weights(settings, model, adapter=0)
            wrapped = _wrapped(model, settings, [name])
            trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
            priced = replace(in_full, adapter=trained - in_full.in_full).priced
            with saving_only(wrapped, name):
                yield Attached(model=wrapped, adapter_parameters=priced, save=partial(self.save, wrapped, name))

    @contextmanager
    def attached_together(
        self, model: PreTrainedModel, settings: ProbeSettings, names: Sequence[str]
    ) -> Iterator[tuple[PeftModel, int]]:
        """The model with the adapters of P probes, all trainable, and the weights of one; nothing is trained in full beside them."""
        with preserve_model_state(model):
            wrapped = _wrapped(model, settings, names)
            wrapped.base_model.set_adapter(list(names))
            weights = dict(wrapped.named_parameters())
            first = {path: weight for path, weight in weights.items() if f".{names[0]}." in path}
            with torch.no_grad():
                for path, weight in first.items():  # the start that each would have alone, see `attached`
                    for name in names[1:]:
                        weights[path.replace(f".{names[0]}.", f".{name}.")].copy_(weight)
            yield wrapped, sum(weight.numel() for weight in first.values())

    def save(self, attached: PeftModel, name: str, folder: Path) -> None:
        """Keep an ordinary PEFT adapter, whole or not at all."""
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        # Of a model in parts PEFT would gather every weight: it is given the adapter's, which all ranks have whole.
        own = {"state_dict": {n: p for n, p in attached.named_parameters() if "lora_" in n}}
        given: dict[str, Any] = own if is_sharded(attached) else {}
        attached.save_pretrained(str(temporary), selected_adapters=[name], save_embedding_layers=False, **given)
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
        if (
            settings.kind == "lora+embeddings"
        ):  # PEFT ties the copies of tied weights for the first adapter of a model only
            apart = dict(zip(names, folders, strict=True))
            deltas = DeltaSet.from_folders(model, apart, device=device_of(model))
            once = {place: deltas.deltas[place] for place, _ in base_parameters(model) if place in deltas.deltas}
            with preserve_model_state(model):
                yield make_proxies(model, deltas=deltas, backend=backend), DeltaSet(names, once).gram()
            return
        with preserve_model_state(model):
            wrapped = _wrapped(model, settings, names)
            for name, folder in zip(names, folders, strict=True):
                set_peft_model_state_dict(wrapped, load_file(folder / _WEIGHTS), adapter_name=name)
            yield make_proxies(wrapped, names, backend=backend), DeltaSet.from_peft(wrapped, names).gram()


class FullProbes:
    """Short trainings of every weight that requires a gradient, kept as float32 differences to the current model.

    float32 whatever the model's precision: only so does the model plus the difference give the trained weights back.
    """

    @contextmanager
    def attached(self, model: PreTrainedModel, settings: ProbeSettings, name: str) -> Iterator[Attached]:
        """See `ProbeKind`."""
        obstacle = why_not_mergeable(model)
        trained = {path: parameter for path, parameter in base_parameters(model) if parameter.requires_grad}
        if obstacle is not None or not trained:
            raise AdapterError(
                f"probes.kind: full needs weights that can be trained, but {obstacle or 'none requires a gradient'}; "
                "use probes.kind: lora"
            )
        before = {path: parameter.detach().clone() for path, parameter in trained.items()}
        with preserve_model_state(model):
            try:
                yield Attached(model=model, adapter_parameters=None, save=partial(self.save, trained, before))
            finally:
                try:
                    _copy_back(trained, before)
                except BaseException:  # Ctrl-C in the middle of the copies: start them over, then let it through
                    _copy_back(trained, before)
                    raise

    def save(self, trained: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Keep the differences, whole or not at all."""
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        changes = {path: (now.detach().float() - before[path].float()).cpu() for path, now in trained.items()}
        save_file({path: change.contiguous() for path, change in changes.items()}, temporary / _DELTAS)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)

    def is_whole(self, folder: Path) -> bool:
        """See `ProbeKind`."""
        return _is_readable(folder / _DELTAS)

    @contextmanager
    def interpolated(
        self, model: PreTrainedModel, settings: ProbeSettings, folders: Sequence[Path], backend: Backend
    ) -> Iterator[tuple[Proxies, FloatArray]]:
        """See `ProbeKind`."""
        changes = [load_file(folder / _DELTAS) for folder in folders]
        names = names_of(len(folders))
        gram = DeltaSet.from_differences(names, {path: path for path in changes[0]}, changes).gram()
        named = {id(parameter): path for path, parameter in base_parameters(model)}
        places = {  # a tied weight is one parameter in two places
            f"{path}.{attribute}" if path else attribute: named[id(parameter)]
            for path, module in base_modules(model)
            for attribute, parameter in module.named_parameters(recurse=False)
        }
        moved = {place: path for place, path in places.items() if path in changes[0]}
        with preserve_model_state(model):
            deltas = DeltaSet.from_differences(names, moved, changes)
            yield make_proxies(model, deltas=deltas, backend=backend), gram


def _copy_back(trained: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for path, parameter in trained.items():
            parameter.copy_(before[path])


ADAPTERS, FULL = AdapterProbes(), FullProbes()


def kind_of(settings: ProbeSettings) -> ProbeKind:
    """The kind that the settings name."""
    return FULL if settings.kind == "full" else ADAPTERS


def check_probes(model: PreTrainedModel, settings: ProbeSettings) -> None:
    """Put a probe of these settings on the model, or on its likeness without weights, and take it off again.

    Raises:
        ModelError: The model has no layer for adapters.
        AdapterError: A name matches no layer, PEFT refuses one, or adapters of this kind cannot be interpolated.
    """
    if is_sharded(model) and (settings.kind != "lora" or settings.modules_to_save):
        raise AdapterError(
            f"probes.kind: {settings.kind}, modules_to_save: {list(settings.modules_to_save)}; of a model in parts "
            "on several ranks expected lora and none"
        )
    if settings.kind == "full":
        _check_full(model)
        return
    modules = {path: module for path, module in base_modules(model) if path}
    for key in ("target_modules", "modules_to_save"):
        for name in getattr(settings, key) or ():
            if not any(path == name or path.endswith(f".{name}") for path in modules):
                known = {p.rpartition(".")[2] for p, m in modules.items() if hasattr(m, "weight")}
                raise AdapterError(f"probes.{key}: {name!r} matches no layer{nearest(name, sorted(known))}")
    try:
        (probe,) = names_of(1)
        with ADAPTERS.attached(model, settings, probe) as attached:
            check_config(attached.model.peft_config[probe], probe)
            for path, module in attached.model.named_modules():
                if isinstance(module, LoraLayer):
                    check_layer(module, probe, path)
    except (ValueError, TypeError, NotImplementedError) as error:  # PEFT's own words for layers that it cannot adapt
        raise AdapterError(f"probes.target_modules: PEFT refuses {settings.target_modules}: {error}") from error


def _check_full(model: PreTrainedModel) -> None:
    """Refuse a model whose weights cannot be written, before a probe is trained; of a likeness its configuration tells."""
    likeness = any(parameter.is_meta for parameter in model.parameters())
    packed = getattr(model.config, "quantization_config", None) is not None
    obstacle = "its weights are quantised" if packed else None if likeness else why_not_mergeable(model)
    if obstacle is not None:
        raise AdapterError(
            f"probes.kind: full needs weights that can be trained, but {obstacle}; use probes.kind: lora"
        )


def _wrapped(model: PreTrainedModel, settings: ProbeSettings, names: Sequence[str]) -> PeftModel:
    """The model with new adapters; the last is the active one."""
    first, *others = [lora_config(settings, model) for _ in names]  # all of the plain model, before it carries any
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft remarks on tied embeddings, which are not adapted here
        wrapped = get_peft_model(model, first, adapter_name=names[0])
        for name, config in zip(names[1:], others, strict=True):
            wrapped.add_adapter(name, config)
    wrapped.set_adapter(names[-1])
    # PEFT compiles a template for the model card of every adapter that it saves; nobody reads the card of a probe.
    vars(wrapped)["create_or_update_model_card"] = _no_card
    return wrapped


def _no_card(folder: str) -> None:
    """In place of PEFT's."""


@dataclass(frozen=True, kw_only=True)
class ProbeWeights:
    """What one probe trains and keeps."""

    adapter: int
    """Weights of its adapter."""
    in_full: int
    """Weights of the model itself."""
    multiplied: int | None
    """Those of `in_full` that are used in matrix products beside adapters; None: the whole model is trained."""

    @property
    def kept(self) -> int:
        """All of them."""
        return self.adapter + self.in_full

    @property
    def priced(self) -> int | None:
        """As `Objective.flops` counts an adapter's; None: full training.

        An adapter's weight costs 6 FLOPs a token; one trained in full beside it only its own gradient, 2; an embedding's look-up none.
        """
        return None if self.multiplied is None else self.adapter + self.multiplied // 3


def probe_weights(settings: ProbeSettings, model: PreTrainedModel, *, adapter: int | None = None) -> ProbeWeights:
    """Weights of one probe of a model, which may be on the meta device; `adapter`: of its adapter, where they are known.

    Raises:
        ModelError: The model has no layer for adapters.
    """
    if settings.kind == "full":
        trained = sum(p.numel() for _, p in base_parameters(model) if p.requires_grad)
        return ProbeWeights(adapter=0, in_full=trained, multiplied=None)
    names = [*settings.modules_to_save, *modules_in_full(settings, model)]
    modules = [m for path, m in base_modules(model) if any(path == n or path.endswith(f".{n}") for n in names)]
    looked_up = {id(m.weight) for m in modules if isinstance(m, torch.nn.Embedding)}
    looked_up -= {id(getattr(model.get_output_embeddings(), "weight", None))}
    found = {id(p): p for m in modules for p in m.parameters()}
    return ProbeWeights(
        adapter=adapter_parameters(model, settings.rank, settings.target_modules) if adapter is None else adapter,
        in_full=sum(p.numel() for p in found.values()),
        multiplied=sum(p.numel() for key, p in found.items() if key not in looked_up and p.dim() > 1),
    )


def lora_config(settings: ProbeSettings, model: PreTrainedModel) -> LoraConfig:
    """The adapter's configuration for this architecture."""
    in_full = [*settings.modules_to_save, *modules_in_full(settings, model)]
    tied = {"ensure_weight_tying": True} if "+" in settings.kind and _is_tied(model) else {}
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        target_modules=list(settings.target_modules) if settings.target_modules else lora_targets(model),
        modules_to_save=list(dict.fromkeys(in_full)) or None,
        task_type="CAUSAL_LM",
        **tied,
    )


def modules_in_full(settings: ProbeSettings, model: PreTrainedModel) -> list[str]:
    """Names of the modules that the kind trains in full beside adapters: the embedding, and an output head of its own."""
    if settings.kind != "lora+embeddings":
        return []
    wanted = [model.get_input_embeddings(), None if _is_tied(model) else model.get_output_embeddings()]
    return [path for path, module in base_modules(model) if any(module is one for one in wanted)]


def _is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head is the embedding."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _is_readable(file: Path) -> bool:
    """Whether a safetensors file is there and as long as its header says."""
    try:
        with safe_open(regular(file), framework="pt") as content:
            return bool(content.keys())
    except (OSError, SafetensorError):
        return False
