"""Work on somebody's live model and leave no trace: modules, hooks, flags, gradients, configs and random generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from opmix.errors import ModelError
from opmix.training.process_state import preserve_process_state, restorer


def plain_model(model: Any) -> PreTrainedModel:
    """Return the model that probes can be trained on; of one that `torch.compile` wrapped, the model inside.

    Raises:
        ModelError: The model carries adapters, is no transformers model, has no language-model head, or some of its weights are offloaded.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, PeftModel) or (
        isinstance(model, nn.Module) and any(isinstance(module, BaseTunerLayer) for module in model.modules())
    ):
        raise ModelError(
            "the model carries PEFT adapters; probes are adapters on the plain model: pass `model.merge_and_unload()` "
            "to search on what the adapters have learned, or the base model without them"
        )
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"the model is a {type(model).__name__}; expected a transformers causal language model "
            "(of a wrapper such as DistributedDataParallel pass the model inside, `model.module`)"
        )
    if not hasattr(model, "prepare_inputs_for_generation"):
        raise ModelError(
            f"the model is a {type(model).__name__}, which has no head that foretells tokens; expected a causal "
            "language model, as AutoModelForCausalLM loads it"
        )
    offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if offloaded:
        raise ModelError(
            f"{len(offloaded)} weights are offloaded, among them {offloaded[0]}; expected all weights in memory: "
            "load the model without `device_map` offloading, or on a larger device"
        )
    check_not_repacked(model)
    return model


def check_not_repacked(model: nn.Module) -> None:
    """Refuse 4-bit weights that bitsandbytes has packed anew, for a processor with AVX512-BF16, when the model was evaluated on it.

    What unpacks 4-bit weights does not know that order: it reads other values, without a word.

    Raises:
        ModelError: There are some.
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ModelError(
                f"{name}: bitsandbytes has packed its weights anew for this processor, when the model was evaluated, "
                "and nothing can unpack them; load the model again and search before evaluating it, or load it in "
                "bfloat16"
            )


@contextmanager
def preserve_model_state(model: PreTrainedModel) -> Iterator[None]:
    """Give the model back as it came; a Trainer that is in the middle of its run does not notice.

    Inside, other Trainers may train adapters on it, and PEFT may replace its modules. Put back, also after an error or Ctrl-C, are every
    module's attributes (submodules, parameters, hooks, training mode, a compiled or patched forward), `requires_grad`, gradients, all
    configurations however nested, the generators of Python, numpy and torch (all devices), and accelerate's process-wide state. Inside,
    modules compiled in place run uncompiled. The *values* of weights are not kept: what changes them restores them itself.
    """
    modules = list(model.modules())
    kept = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    holders = [vars(module) for module in modules] + [vars(config) for config in _configs(modules)]
    restore = [restorer(holder) for holder in holders]
    for parameter, _, _ in kept:
        parameter.grad = None
    for module in modules:
        if vars(module).get("_compiled_call_impl") is not None:
            module._compiled_call_impl = None
        if vars(module).get(
            "support_avx512bf16_for_cpu"
        ):  # or bitsandbytes packs the weights anew where they are evaluated
            vars(module)["support_avx512bf16_for_cpu"] = False
    try:
        with preserve_process_state():
            yield
    finally:
        for put_back in restore:
            put_back()
        for parameter, flag, gradient in kept:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def _configs(modules: list[nn.Module]) -> list[Any]:
    """Every configuration that the modules hold, each once, those inside others too."""
    found: dict[int, Any] = {}
    waiting = [getattr(module, name, None) for module in modules for name in ("config", "generation_config")]
    while waiting:
        config = waiting.pop()
        if config is None or id(config) in found or not hasattr(config, "__dict__"):
            continue
        found[id(config)] = config
        waiting += [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return list(found.values())
