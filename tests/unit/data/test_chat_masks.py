"""What is supervised is exactly the answers, under several chat templates and kinds of tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from opmix.data.chat.conversation import Conversation, Message
from opmix.data.chat.encode import encode_chats
from opmix.data.chat.template import ChatFormat, chat_format
from opmix.domain import ChatOptions
from opmix.errors import DataError
from opmix.testing import CHATML, tiny_tokenizer

CHATML_MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set extra = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set extra = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ (extra if loop.first else '') + m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
REWRITES = (
    "{% for m in messages %}{% if loop.last %}[{{ m.role }}] {{ m.content }}{% else %}({{ m.role }}) {{ m.content }}{% endif %}\n"
    "{% endfor %}"
)
MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "<s>",
]

# What each template supervises of an answer, beside the answer itself.
ANSWERS = {
    "chatml": (CHATML, "{}<|im_end|>"),
    "chatml marked": (CHATML_MARKED, "{}<|im_end|>"),
    "llama 3": (LLAMA3, "{}<|eot_id|>"),
    "mistral": (MISTRAL, " {}<eos>"),
    "plain": (PLAIN, " {}\n"),
}


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS, "bos_token": "<s>"})
    return tokenizer


@pytest.fixture(scope="module")
def sentence_piece() -> PreTrainedTokenizerFast:
    """Puts a space before every text, as Llama 2's and Mistral's do."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = [chr(i) for i in range(32, 127)] + ["\n"]
    inner.train_from_iterator(
        ["the answer is four and more " * 3],
        trainers.BpeTrainer(
            vocab_size=200, special_tokens=["<unk>", "<eos>", "<s>"], initial_alphabet=letters, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", bos_token="<s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    return tokenizer


def talk(*contents: str, system: str | None = None, first: int = 0) -> Conversation:
    turns = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    head = [Message("system", system)] if system is not None else []
    return Conversation((*head, *turns), "here", first)


def supervised(tokenizer: Any, form: ChatFormat, conversation: Conversation) -> list[str]:
    """The runs of supervised tokens, as text."""
    encoded = encode_chats(form, tokenizer, [conversation])
    assert encoded.mask is not None
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.mask, [0]])))
    return [tokenizer.decode(encoded.ids[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


def form(tokenizer: Any, template: str, **options: Any) -> ChatFormat:
    return chat_format(tokenizer, ChatOptions(template=template, **options), domain="d")


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("answer", ["four", "It is 4.\n\nReally: 2 + 2", "ends <|in|> oddly", "été – 四"])
def test_exactly_the_answers_are_supervised(byte_level, name, answer):
    template, shape = ANSWERS[name]
    conversation = talk("What is 2+2?", answer, "And 3+3?", "six")
    found = supervised(byte_level, form(byte_level, template), conversation)
    assert found == [shape.format(answer), shape.format("six")]
    last = supervised(byte_level, form(byte_level, template, supervise="last"), conversation)
    assert last == [shape.format("six")]


@pytest.mark.parametrize("name", [n for n in ANSWERS if n != "plain"])
def test_a_system_turn_and_a_given_prompt_are_not_supervised(byte_level, name):
    template, shape = ANSWERS[name]
    conversation = talk("a", "given", "b", "learned", system="Be brief.", first=4)
    assert supervised(byte_level, form(byte_level, template), conversation) == [shape.format("learned")]


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_the_prompt_in_training_is_the_prompt_when_asked(request, name, kind):
    tokenizer, (template, _) = request.getfixturevalue(kind), ANSWERS[name]
    conversation = talk("the answer?", "the answer is four")
    encoded = encode_chats(form(tokenizer, template), tokenizer, [conversation])
    asked = tokenizer.apply_chat_template(
        [m.plain() for m in conversation.messages[:1]], chat_template=template, add_generation_prompt=True
    )["input_ids"]
    assert encoded.mask is not None
    assert encoded.ids[: int(np.argmax(encoded.mask))].tolist() == asked
    assert tokenizer.decode(encoded.ids.tolist()).replace(" ", "") == (
        tokenizer.apply_chat_template(
            [m.plain() for m in conversation.messages], chat_template=template, tokenize=False
        )
    ).replace(" ", "")


@pytest.mark.parametrize("name", ["chatml", "llama 3", "mistral"])
def test_tokenizers_that_add_a_space_add_none_inside(sentence_piece, name):
    template, shape = ANSWERS[name]
    conversation = talk("the answer?", "the answer is four", "more?", "and more")
    whole = sentence_piece.apply_chat_template([m.plain() for m in conversation.messages], chat_template=template)
    encoded = encode_chats(form(sentence_piece, template), sentence_piece, [conversation])
    assert encoded.ids.tolist() == whole["input_ids"]
    found = supervised(sentence_piece, form(sentence_piece, template), conversation)
    assert [f.strip() for f in found] == [shape.format("the answer is four").strip(), shape.format("and more").strip()]


def test_masks_agree_with_transformers_where_it_has_them(byte_level):
    conversation = talk("What is 2+2?", "four it is", "And?", "six")
    messages = [m.plain() for m in conversation.messages]
    theirs = byte_level.apply_chat_template(
        messages, chat_template=CHATML_MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = encode_chats(form(byte_level, CHATML_MARKED), byte_level, [conversation])
    assert ours.mask is not None
    assert ours.ids.tolist() == theirs["input_ids"]
    assert ours.mask.tolist() == theirs["assistant_masks"]


def test_bytes_are_those_of_the_supervised_text(byte_level):
    encoded = encode_chats(form(byte_level, CHATML), byte_level, [talk("q", "é"), talk("q", "ab")])
    assert encoded.byte_counts.tolist() == [2 + len("<|im_end|>"), 2 + len("<|im_end|>")]


def test_a_template_that_rewrites_earlier_turns_has_no_exact_mask(byte_level):
    conversation = talk("a", "one", "b", "two")
    with pytest.raises(DataError, match=r"cannot be told exactly; mark answers"):
        form(byte_level, REWRITES).render(conversation)


def test_a_template_that_changes_an_answer_has_no_exact_mask(byte_level):
    with pytest.raises(DataError, match="changes the text of assistant turn 2"):
        form(byte_level, CHATML.replace("message.content", "message.content | upper")).render(talk("a", "one"))


def test_a_template_that_marks_too_few_answers_is_refused(byte_level):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% generation %}{{ messages[-1].content }}{% endgeneration %}"
    with pytest.raises(DataError, match="marks 1 answers"):
        form(byte_level, template).render(talk("a", "one", "b", "two"))


def test_a_conversation_the_template_refuses_is_named(byte_level):
    odd = Conversation((Message("user", "a"), Message("user", "b"), Message("assistant", "c")), "file.jsonl:7")
    with pytest.raises(DataError, match=r"file.jsonl:7: the chat template refuses .*roles must alternate"):
        form(byte_level, MISTRAL).render(odd)


def test_broken_jinja_is_named(byte_level):
    with pytest.raises(DataError, match="here: the chat template refuses"):
        form(byte_level, "{% for m in messages %}").render(talk("a", "b"))


def test_no_template_is_a_clear_error_with_a_remedy():
    with pytest.raises(
        DataError, match=r"'d' holds conversations, and tokenizer .* has no chat template.*model.chat_template"
    ):
        chat_format(tiny_tokenizer(), ChatOptions(), domain="d")


def test_the_teachers_context_has_the_demonstration_and_ends_where_it_answers(byte_level):
    given = chat_format(
        byte_level, ChatOptions(template=CHATML), domain="d", demonstration="{prompt}\nSuch as: {demonstration}\nYou:"
    )
    encoded = encode_chats(given, byte_level, [talk("{demonstration}?", "{prompt}", "q", "a", system="s")])
    text = byte_level.decode(encoded.ids.tolist())
    assert text.endswith("<|im_start|>user\nq\nSuch as: a\nYou:<|im_end|>\n<|im_start|>assistant\n")
    assert "{demonstration}?" in text
    assert encoded.mask is not None
    assert not encoded.mask.any()


THINKS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}{% else %}<|im_end|>{{ m.content }}.{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|><think>\n{% endif %}"
)


def test_a_prompt_that_opens_the_thinking_is_named_as_what_it_is():
    talk = Conversation((Message("user", "q"), Message("assistant", "a")), "f:1")
    with pytest.raises(DataError) as caught:
        ChatFormat(template=THINKS, supervise="last").render(talk)
    message = str(caught.value)
    assert repr("<think>\n") in message
    assert "'a.'" in message
    assert "mark answers" in message
    assert "supervise" not in message.split(";")[-1]
    assert "more follow" not in message


def test_a_template_that_asks_the_clock_is_told_a_fixed_day(monkeypatch):
    import transformers.utils.chat_template_utils as theirs

    class Never(theirs.datetime):
        @classmethod
        def now(cls, tz=None):
            raise AssertionError("asked the clock")

    monkeypatch.setattr(theirs, "datetime", Never)
    dated = ChatFormat(template="{{ strftime_now('%d %b %Y') }} " + PLAIN)
    talk = Conversation((Message("user", "q"), Message("assistant", "a")), "f:1")
    assert dated.render(talk).text.startswith("26 Jul 2024 user: q")
    assert dated.asks_the_clock
    assert not ChatFormat(template=PLAIN).asks_the_clock
