"""Conversations to text through a chat template, with the exact spans that are supervised.

A template that marks its answers with `{% generation %}` says itself where they are. For any other the spans are derived by rendering
prefixes: what is before an answer, with the generation prompt, must be a prefix of what includes it, and that a prefix of the whole.
Where it is not (templates that rewrite earlier turns), there is no exact mask, and that is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from opmix.data.chat.conversation import Conversation, Message
from opmix.domain import ChatOptions, Supervise
from opmix.errors import DataError

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DATE = datetime(2024, 7, 26)
"""What templates that ask the clock are told, so that tokens depend on no day: the date that Llama 3's own template falls back to."""
_CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>.*?)(?P=quote)\s*\)""")
_PLACE = re.compile(r"\{(prompt|demonstration)\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Characters that are supervised, in order, not overlapping."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """All that decides how conversations are rendered."""

    template: str
    supervise: Supervise = "all"
    special_tokens: Mapping[str, Any] = field(default_factory=dict)
    """`bos_token`, `eos_token`, ... as templates name them."""
    demonstration: str | None = None
    """None: whole conversations. Else text with `{prompt}` and `{demonstration}` that takes the last user turn's place: the context
    of self-distillation's teacher, up to where it would answer."""

    @property
    def fingerprint(self) -> str:
        """Part of the cache's key."""
        parts: tuple[Any, ...] = (
            self.template,
            self.supervise,
            sorted(self.special_tokens.items()),
            self.demonstration,
        )
        if self.asks_the_clock:
            parts = (*parts, str(_DATE))
        return hashlib.blake2b(repr(("chat-1", parts)).encode(), digest_size=16).hexdigest()

    @property
    def asks_the_clock(self) -> bool:
        """Whether the template writes today's date."""
        return "strftime_now" in self.template

    def render(self, conversation: Conversation) -> Rendered:
        """The text and its supervised spans.

        Raises:
            DataError: The template refuses the conversation, gives no exact spans, or renders no tools and calls.
        """
        self._refuse_lost_calls(conversation)
        if self.demonstration is not None:
            return Rendered(self._teacher_prompt(conversation, self.demonstration), ())
        wanted = conversation.answers[-1:] if self.supervise == "last" else conversation.answers
        if _MARK.search(self.template):
            return self._marked(conversation, wanted)
        whole = self._text(conversation, len(conversation.messages), prompt=False)
        return Rendered(whole, tuple(self._derived(conversation, turn, whole) for turn in wanted))

    def _refuse_lost_calls(self, conversation: Conversation) -> None:
        calls = any("tool_calls" in dict(message.extra) for message in conversation.messages)
        for there, word in ((bool(conversation.tools), "tools"), (calls, "tool_calls")):
            if there and word not in self.template:
                raise DataError(
                    f"{conversation.where}: has `{word}`, which the chat template does not render, so they would be "
                    f"lost; "
                    "give a template that does (`model.chat_template`), or write them into the turns"
                )

    def _text(self, conversation: Conversation, stop: int, *, prompt: bool) -> str:
        return self._jinja(conversation.messages[:stop], conversation, prompt=prompt)[0]

    def _jinja(
        self, messages: Sequence[Message], row: Conversation, *, prompt: bool, spans: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, found = render_jinja_template(
                conversations=[[message.plain() for message in messages]],
                tools=json.loads(row.tools) if row.tools else None,
                chat_template=_undated(self.template),
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=spans,
                **self.special_tokens,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"{row.where}: the chat template refuses turns of {roles} ({error}); expected turns it can render; "
                "drop the row or give another `chat_template`"
            ) from error
        return texts[0], list(found[0]) if spans else []

    def _marked(self, conversation: Conversation, wanted: Sequence[int]) -> Rendered:
        text, spans = self._jinja(conversation.messages, conversation, prompt=False, spans=True)
        turns = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
        if len(spans) != len(turns):
            raise DataError(
                f"{conversation.where}: the chat template marks {len(spans)} answers with {{% generation %}}, the "
                "conversation has "
                f"{len(turns)}; expected one mark for each; repair the template"
            )
        return Rendered(text, tuple(span for turn, span in zip(turns, spans, strict=True) if turn in wanted))

    def _derived(self, conversation: Conversation, turn: int, whole: str) -> tuple[int, int]:
        before = self._text(conversation, turn, prompt=True)
        until = self._text(conversation, turn + 1, prompt=False)
        if not until.startswith(before):
            same = next((i for i, (a, b) in enumerate(zip(before, until, strict=False)) if a != b), len(until))
            raise DataError(
                f"{conversation.where}: the chat template asks for answer {turn + 1} with {before[same:]!r}, and the "
                "stored answer goes "
                f"on with {until[same : same + 40]!r} there, so what is supervised cannot be told exactly; mark "
                "answers in the template "
                "with {% generation %}"
            )
        if not whole.startswith(until):
            last = "" if self.supervise == "last" else ", or set `supervise: last`"
            raise DataError(
                f"{conversation.where}: the chat template renders the first {turn + 1} turns otherwise when more "
                "follow, so what is "
                f"supervised cannot be told exactly; mark answers in it with {{% generation %}}{last}"
            )
        answer = until[len(before) :]
        content = conversation.messages[turn].content.strip()
        end = answer.rfind(content) if content else 0  # a turn may be calls alone
        if end < 0:
            raise DataError(
                f"{conversation.where}: the chat template changes the text of assistant turn {turn + 1}, so what is "
                "supervised cannot "
                "be told exactly; mark answers in it with {% generation %}"
            )
        # White space after the mark that ends the turn is the template's; a turn that white space ends keeps it.
        closing = answer[end + len(content) :]
        kept = len(closing.rstrip()) or len(closing)
        return len(before), len(before) + end + len(content) + kept

    def _teacher_prompt(self, conversation: Conversation, demonstration: str) -> str:
        last = conversation.answers[-1]
        *earlier, question = conversation.messages[:last]
        if question.role != "user":
            raise DataError(
                f"{conversation.where}: the last answer follows a turn of {question.role!r}; expected one of 'user' "
                "that a "
                "demonstration can be added to; drop the row or use `objective: sft`"
            )
        if "tool_calls" in dict(conversation.messages[last].extra):
            raise DataError(
                f"{conversation.where}: the last answer calls tools; expected text that a demonstration can quote; "
                f"drop the "
                "row or use `objective: sft`"
            )
        values = {"prompt": question.content, "demonstration": conversation.messages[last].content}
        asked = Message("user", _PLACE.sub(lambda match: values[match[1]], demonstration))
        return self._jinja([*earlier, asked], conversation, prompt=True)[0]


def _undated(template: str) -> str:
    """The template with every date it asks for written in."""
    return _CLOCK.sub(lambda call: repr(_DATE.strftime(call["format"])), template)


def chat_format(
    tokenizer: PreTrainedTokenizerBase, options: ChatOptions, *, domain: str, demonstration: str | None = None
) -> ChatFormat:
    """The format of a domain: the template given, else the tokenizer's own.

    Raises:
        DataError: There is none, or it is no valid Jinja.
    """
    template = options.template
    if template is None:
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            name = tokenizer.name_or_path or type(tokenizer).__name__
            raise DataError(
                f"domain {domain!r} holds conversations, and tokenizer {name} has no chat template; expected one; set "
                "`model.chat_template` to a Jinja text or file, or use a model trained for chat"
            ) from error
    if re.search(r"strftime_now\s*\(", _undated(template)):
        raise DataError(
            f"domain {domain!r}: the chat template asks for today's date in a format that is no plain text, so tokens "
            "would depend on the "
            "day; expected strftime_now('...'); write the date into the template (`model.chat_template`)"
        )
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return ChatFormat(
        template=template, supervise=options.supervise, special_tokens=special, demonstration=demonstration
    )
