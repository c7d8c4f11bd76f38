"""What a model's configuration tells before its weights are loaded: sizes, limits, memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from opmix.compute.budget import Batch
from opmix.compute.flops import ModelShape
from opmix.config import ModelConfig, SearchConfig
from opmix.errors import ModelError
from opmix.probes.settings import ProbeSettings

PROCESS_BYTES = 700e6
"""A Python process with torch and transformers loaded, before any model."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model on the meta device, in numbers."""

    parameters: int
    linear: int
    """Weights of the model that probes can touch; merging keeps a copy of them."""
    shape: ModelShape
    probe_parameters: int
    """Weights that one probe trains and keeps."""
    priced_parameters: int | None
    """The same as FLOPs are counted; None: a probe trains the whole model."""
    reached: float
    """Share of the weights that probes can move."""
    longest: int | None
    """Positions the model has; None: it does not say."""
    vocabulary: int
    """Rows of the embedding."""
    hidden: int
    intermediate: int
    weight_bytes: int
    """Bytes of one weight as the search will load it."""

    def memory(self, config: SearchConfig, num_probes: int) -> float:
        """Bytes that a search needs at its peak: a rough estimate, see docs/first-steps.md for how rough.

        Weights, the copy of the touched ones, all probes, then the larger of one training batch (activations, logits with
        their gradient, optimizer state of one probe) and one evaluation batch.
        """
        rows = Batch.of(config.trainer, 1).micro * config.sequence_length
        resident = self.weight_bytes * (self.parameters + self.linear) + 4.0 * num_probes * self.probe_parameters
        per_layer = 10 * self.hidden + 5 * self.intermediate
        training = (
            rows * (self.shape.num_layers * per_layer * 4.0 + 12.0 * self.vocabulary) + 12.0 * self.probe_parameters
        )
        evaluation = config.proxies.batch_tokens * 12.0 * self.vocabulary
        return PROCESS_BYTES + resident + max(training, evaluation)


def model_facts(config: ModelConfig, name: str, probes: ProbeSettings, *, in_parts: bool = False) -> ModelFacts:
    """Read a model's configuration and lay the model out without weights.

    Args:
        config: How it will be loaded.
        name: Its folder or hub name, resolved.
        probes: Which layers get adapters.
        in_parts: It will be spread over ranks.

    Raises:
        ModelError: Nothing there, no causal LM, files missing, or no layer for the adapters.
        AdapterError: Probes as the settings say cannot be put on it.
    """
    from opmix.models.device import device_named
    from opmix.models.files import load_model_config
    from opmix.models.layers import model_shape, parameter_counts, reached_share
    from opmix.models.load import empty_model
    from opmix.models.sharded import check_can_be_sharded
    from opmix.probes.kinds import check_probes, modules_in_full, probe_weights

    _check_files(Path(name))
    loaded = load_model_config(name, revision=config.revision, trust_remote_code=config.trust_remote_code)
    device_named(config.device)
    model = empty_model(
        loaded, trust_remote_code=config.trust_remote_code, attn_implementation=config.attn_implementation
    )
    if getattr(loaded, "quantization_config", None) is None:  # quantised weights are packed: of other shapes
        _check_weights(Path(name), {n: tuple(p.shape) for n, p in model.state_dict().items()})
    if in_parts:
        check_can_be_sharded(model)
    check_probes(model, probes)
    counts, text, full = parameter_counts(model), loaded.get_text_config(), probes.kind == "full"
    weights, in_full = probe_weights(probes, model), [*probes.modules_to_save, *modules_in_full(probes, model)]
    return ModelFacts(
        parameters=counts.total,
        linear=counts.total if full else counts.linear + counts.experts + weights.in_full,
        shape=model_shape(model),
        probe_parameters=weights.kept,
        priced_parameters=weights.priced,
        reached=1.0 if full else reached_share(model, probes.target_modules, in_full),
        longest=getattr(text, "max_position_embeddings", None),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        weight_bytes=_weight_bytes(config),
    )


def _check_files(folder: Path) -> None:
    """A local checkpoint has its weights.

    Raises:
        ModelError: There are none, or some are missing.
    """
    if not folder.is_dir() or not (folder / "config.json").exists():
        return  # a hub name or a .gguf file; `load_model_config` speaks about those
    for index in sorted(folder.glob("*.index.json")):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"{index}: cannot be read ({error}); expected the index of a sharded checkpoint; copy it again"
            ) from error
        if missing := sorted(file for file in named if not (folder / file).is_file()):
            raise ModelError(
                f"{folder}: {len(missing)} of {len(named)} weight files are missing, among them {missing[0]}; expected "
                "all; copy them again"
            )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelError(
            f"{folder}: has a config.json but no weights; expected .safetensors files; copy them, or give another "
            "checkpoint"
        )


def _check_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A local checkpoint's files are whole, and of the sizes that its configuration says.

    Raises:
        ModelError: A file is cut, empty, something else, or holds a weight of another shape.
    """
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(path, framework="numpy") as file:
                found = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys() if n in shapes}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); expected whole safetensors; copy it again") from error
        for name, shape in found.items():
            if shape != shapes[name]:
                raise ModelError(
                    f"{path}: {name} is {shape}, config.json says {shapes[name]}; they do not belong together: copy "
                    "both again"
                )
    for path in sorted(folder.glob("pytorch_model*.bin")) if folder.is_dir() else ():
        with path.open("rb") as file:
            if file.read(2) not in (b"PK", b"\x80\x02"):  # torch's archives; its files before 1.6
                raise ModelError(f"{path}: holds no weights as torch saves them; copy it again")


def _weight_bytes(config: ModelConfig) -> int:
    import torch

    from opmix.models.device import device_named

    device = device_named(config.device)
    half = config.dtype == "bfloat16" or (
        config.dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return 2 if half else 4
