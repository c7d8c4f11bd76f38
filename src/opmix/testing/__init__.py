"""For tests and first tries: small real models, toy texts, and a context in which nothing is trained.

Nothing is downloaded. The models are two-layer ones of real architectures with a BPE tokenizer trained on the spot; texts come
from domains whose statistics differ; `FakeContext` needs no model at all. `check_method`, `check_law` and `check_exporter` hold
an implementation of somebody else's to what opmix expects of its own. The same arguments give the same result, and torch is
imported only for what needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from opmix.testing.contracts import check_exporter, check_law, check_method
from opmix.testing.fake_context import FakeCall, FakeContext, FakeRunner, Surface, log_linear_surface
from opmix.testing.texts import toy_conversations, toy_documents, write_toy_chats, write_toy_domains

if TYPE_CHECKING:
    from opmix.testing.models import (
        ARCHITECTURES,
        CHATML,
        tiny_adapter,
        tiny_chat_tokenizer,
        tiny_model,
        tiny_tokenizer,
    )

__all__ = [
    "ARCHITECTURES",
    "CHATML",
    "FakeCall",
    "FakeContext",
    "FakeRunner",
    "Surface",
    "check_exporter",
    "check_law",
    "check_method",
    "log_linear_surface",
    "tiny_adapter",
    "tiny_chat_tokenizer",
    "tiny_model",
    "tiny_tokenizer",
    "toy_conversations",
    "toy_documents",
    "write_toy_chats",
    "write_toy_domains",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("opmix.testing.models"), name)
    raise AttributeError(f"module 'opmix.testing' has no attribute {name!r}")
