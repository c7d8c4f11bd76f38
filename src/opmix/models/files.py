"""Where a model's files are, what its configuration says, and why transformers could not read them."""

from __future__ import annotations

import importlib.util
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from transformers import AutoConfig, PreTrainedConfig

from opmix.domain import PLACEHOLDER
from opmix.domain import located as path_of
from opmix.errors import ModelError


def load_model_config(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Load what a model says of itself, without its weights.

    Raises:
        ModelError: Nothing there, or no configuration of a model.
    """
    source, gguf_file = locate(name_or_path)
    given = reading(source, revision=revision, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(source, **given)
    except Exception as error:  # whatever transformers raises for what it cannot read
        raise explain(source, error, "model") from error


def located(name: str, base: Path) -> str:
    """A model beside a configuration (`base` is its folder) or in a package (`package://NAME/FILE`), or a hub name as it is.

    Raises:
        ConfigError: No such package is installed.
    """
    local = Path(path_of(name, base))
    return str(local) if local.exists() else name


def locate(name_or_path: str | Path, *, tokenizer: bool = False) -> tuple[str, str | None]:
    """What to hand to `from_pretrained`: a folder or hub name, and a GGUF file inside it.

    Args:
        name_or_path: Folder of a saved model, a `.gguf` file, a folder with one, one of these in a package
            (`package://NAME/FILE`), or a hub name.
        tokenizer: A folder with nothing but a tokenizer will do, too.

    Raises:
        ModelError: A path to nothing, or to something else.
    """
    path = Path(path_of(str(name_or_path), Path()))
    text = str(name_or_path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"model {text!r} is a file; expected a folder, a .gguf file or a hub name")
        return _with_gguf(path)
    if path.is_dir():
        if (path / "config.json").exists() or (tokenizer and (path / "tokenizer_config.json").exists()):
            return str(path), None
        if (path / "adapter_config.json").exists():
            raise ModelError(f"model {text!r} is a PEFT adapter; expected a whole model; give its base model instead")
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return _with_gguf(files[0])
        what = f"{len(files)} .gguf files ({', '.join(f.name for f in files)})" if files else "no config.json"
        raise ModelError(f"model folder {text!r} has {what}; expected a saved model or name one .gguf file")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or path.suffix == ".gguf":
        raise ModelError(f"model path {text!r} does not exist; expected a folder or a .gguf file")
    if text == PLACEHOLDER:
        raise ModelError(
            "model: still the placeholder of `opmix init`; put a checkpoint folder, .gguf file or hub name there"
        )
    if not re.fullmatch(r"(?!.*(--|\.\.))[\w\-.]{1,96}(/[\w\-.]{1,96})?", text, re.ASCII):
        raise ModelError(
            f"model {text[:80]!r} is no folder here and cannot be a hub name; expected a folder or OWNER/NAME"
        )
    return text, None


def reading(source: str, **options: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained`: the options that are set; without a network, for a hub name, what is in its cache at once."""
    given = {key: value for key, value in options.items() if value is not None}
    return given if Path(source).is_dir() or _network() else {**given, "local_files_only": True}


def _network() -> bool:
    """Whether the hub's name can be looked up, or a proxy does that: its client tries a name that nobody knows for 47 seconds."""
    try:
        return bool(
            {"http", "https", "all"} & getproxies().keys()
            or socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
        )
    except OSError:
        return False


def _with_gguf(path: Path) -> tuple[str, str]:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {str(path)!r} needs the gguf package: pip install gguf")
    return str(path.parent), path.name


def explain(source: str, error: Exception, what: str) -> ModelError:
    """Say in our words why `from_pretrained` failed."""
    local = Path(source).is_dir()
    if "Unrecognized configuration class" in str(error):
        return ModelError(f"model {source!r} is not a causal language model; expected a *ForCausalLM kind")
    if "trust_remote_code" in str(error):
        return ModelError(f"{what} {source!r} needs its own code to run; read it, then set trust_remote_code")
    first_line = " ".join(str(error).split())[:300] or type(error).__name__
    if local:
        return ModelError(
            f"{what} folder {source!r} cannot be loaded: {first_line}; are its files whole? Copy them again"
        )
    return ModelError(
        f"{what} {source!r} is neither a folder here nor reachable on the model hub: {first_line}; "
        "check the name, log in for gated models, or download it and give the folder"
    )


def forget_gguf(model: Any) -> None:
    """Drop the mark "quantised" that a GGUF origin leaves on plain float weights.

    With the mark, `save_pretrained` fails and the Trainer refuses full training.
    """
    for holder, attribute in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(holder, attribute):
            delattr(holder, attribute)
    model.is_quantized = False
