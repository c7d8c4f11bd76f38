"""Domains that are in memory: every kind the data libraries have, written once, named by what they hold."""

import json
import typing
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix.api import SearchKeywords
from opmix.config import SearchConfig, parse_config
from opmix.data import prepare_domain
from opmix.data.memory import on_disk
from opmix.domain import Domain, Source, hub_dataset
from opmix.errors import ConfigError
from opmix.settings import changed, keys_of
from opmix.settings.loading import validated
from opmix.testing import tiny_chat_tokenizer, tiny_tokenizer, toy_documents

TEXTS = list(toy_documents("web", 200))
CHATS = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": str(i)}] for i in range(40)]


def written(value, folder, tokens=len):
    """What one domain becomes, and the rows of its training file."""
    made = on_disk({"web": value}, cache_dir=folder, tokens=lambda: lambda texts: sum(map(tokens, texts)))["web"]
    domain = validated(Domain, made)
    return domain, [json.loads(line) for line in Path(domain.train.paths[0]).read_text().splitlines()]


def frame():
    return datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(len(TEXTS)))})


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (TEXTS, [{"text": t} for t in TEXTS]),
        (tuple(TEXTS), [{"text": t} for t in TEXTS]),
        ((t for t in TEXTS), [{"text": t} for t in TEXTS]),
        ([{"text": t, "extra": 1} for t in TEXTS], [{"text": t} for t in TEXTS]),
        ([{"text": "word"}], [{"text": "word"}]),
        (CHATS, [{"messages": c} for c in CHATS]),
        ([{"messages": c} for c in CHATS], [{"messages": c} for c in CHATS]),
        (frame(), [{"text": t} for t in TEXTS]),
        ({"train": frame(), "field": "id"}, [{"text": t, "id": i} for i, t in enumerate(TEXTS)]),
        ([{"prompt": "a b", "completion": "c"}], [{"prompt": "a b", "completion": "c"}]),
    ],
    ids=["list", "tuple", "generator", "rows", "one word", "chats", "messages", "Dataset", "field", "completion"],
)
def test_every_kind_becomes_rows(value, rows, tmp_path):
    domain, found = written(value, tmp_path)
    assert found == rows
    assert domain.train.field == ("id" if isinstance(value, dict) else "text")
    assert list((tmp_path / "rows").glob(".writing-*")) == []


def test_splits_of_a_dataset_dict_are_those_of_the_domain(tmp_path):
    split = frame().train_test_split(test_size=0.25, shuffle=False)
    every = datasets.DatasetDict(train=split["train"], validation=split["test"], test=split["test"])
    domain, rows = written(every, tmp_path)
    assert len(rows) == len(split["train"])
    assert domain.valid == domain.test  # the same rows are one file
    with pytest.raises(ConfigError, match=r"domains.web: split 'extra'; expected"):
        written(datasets.DatasetDict(train=split["train"], extra=split["test"]), tmp_path)
    with pytest.raises(ConfigError, match="expected one named train"):
        written(datasets.DatasetDict(test=split["test"]), tmp_path)


def test_the_same_data_are_the_same_file(tmp_path):
    first, _ = written(TEXTS, tmp_path)
    again, _ = written(frame(), tmp_path)
    other, _ = written(TEXTS[1:], tmp_path)
    assert first.train == again.train != other.train


def test_a_stream_is_read_as_far_as_was_said(tmp_path):
    tokenizer = tiny_tokenizer()
    endless = datasets.IterableDataset.from_generator(lambda: ({"text": TEXTS[i % 200]} for i in range(10**9)))
    with pytest.raises(ConfigError, match="may not end; expected how far to read"):
        written(endless, tmp_path)
    most = 20_000
    domain, rows = written(
        {"train": endless, "max_tokens": most}, tmp_path, lambda text: len(tokenizer(text)["input_ids"])
    )
    assert domain.train.max_tokens == most
    assert len(rows) < 5000
    split = prepare_domain(changed(domain, name="web"), tokenizer, cache_dir=tmp_path / "cache")
    total = sum(part.num_tokens for part in (split.train, split.valid, split.test))
    longest = max(len(tokenizer(t)["input_ids"]) for t in TEXTS) + 1
    assert most <= total < most + longest


@pytest.mark.slow
def test_reading_stops_at_the_same_document_with_and_without_a_cache(tmp_path):
    tokenizer, file = tiny_tokenizer(), tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps({"text": f"{i} {TEXTS[i % 200]}"}) + "\n" for i in range(3000)))
    domain = Domain(name="web", train=Source(paths=(str(file),), max_tokens=9000))
    first = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
    for part in ("train", "valid"):  # one split is gone: where to stop needs all of them
        first = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        for folder in (tmp_path / "cache").iterdir():
            if folder.is_dir() and first[part].fingerprint[:8] in folder.name:
                import shutil

                shutil.rmtree(folder)
        again = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        assert again[part].fingerprint == first[part].fingerprint
        assert again[part].num_tokens == first[part].num_tokens
    whole = prepare_domain(changed(domain, train=Source(paths=(str(file),))), tokenizer, cache_dir=tmp_path / "cache")
    assert whole.train.num_tokens > first.train.num_tokens
    assert first.train.num_documents + first.valid.num_documents + first.test.num_documents < 3000


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "empty"),
        (iter(()), "a generator can be read only once"),
        (7, "a int; expected a path"),
        ([1, 2], "row 1 is a int"),
        ([{"text": {1, 2}}], "cannot be written as JSON"),
        (["a.jsonl", "a text of words"], "may be a path or a text"),
        (["nowhere"], r"of texts give rows"),
    ],
)
def test_what_is_no_data_is_told(value, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        written(value, tmp_path)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_dataset_that_is_not_utf8_is_told(tmp_path):
    offsets = pa.py_buffer(np.array([0, 2, 4], dtype=np.int32))
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ok\xe5x")])
    with pytest.raises(ConfigError, match="not UTF-8"):
        on_disk({"web": datasets.Dataset(pa.table({"text": texts}))}, cache_dir=tmp_path, tokens=lambda: len)


def test_paths_stay_paths(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    for value in ("a.jsonl", Path("a.jsonl"), ["a.jsonl", "b.parquet"], [tmp_path / "a.jsonl"], "hf://org/name"):
        made = on_disk({"web": value}, cache_dir=tmp_path, tokens=lambda: len)["web"]
        assert made == value
    made = on_disk({"web": {"train": "a.jsonl", "max_epochs": 2}}, cache_dir=tmp_path, tokens=lambda: len)["web"]
    assert validated(Domain, made) == validated(Domain, {"train": "a.jsonl", "max_epochs": 2})
    made = on_disk({"web": {"train": "hf://org/name", "max_tokens": 10}}, cache_dir=tmp_path, tokens=lambda: len)
    assert validated(Domain, made["web"]).train == Source(paths=("org/name",), format="hub", max_tokens=10)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://org/name", {"paths": ("org/name",), "format": "hub"}),
        ("hf://org/name:test", {"paths": ("org/name",), "format": "hub", "split": "test"}),
        ("hf://org/name@abc/en:train[:1%]", {"paths": ("org/name@abc",), "config_name": "en", "split": "train[:1%]"}),
    ],
)
def test_addresses_of_the_hub(address, expected):
    assert hub_dataset(address).items() >= expected.items()
    source = validated(Domain, address).train
    assert (source.format, source.paths) == ("hub", expected["paths"])
    assert (
        parse_config({"model": "m", "domains": {"a": address, "b": "b.jsonl"}, "budget": "2B"}).budget.tokens
        == 2 * 10**9
    )


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=20))
def test_no_address_is_taken_for_something_else(text):
    try:
        found = hub_dataset("hf://" + text)
    except ConfigError:
        return
    assert found["format"] == "hub"
    assert text.startswith(found["paths"][0])


def test_a_dataset_of_the_hub_is_streamed(tmp_path, monkeypatch):
    """A folder beside the working directory is what `datasets` takes for a repository of that name."""
    repository = tmp_path / "org" / "name"
    repository.mkdir(parents=True)
    (repository / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    (repository / "test.jsonl").write_text(json.dumps({"text": "other"}) + "\n")
    monkeypatch.chdir(tmp_path)
    domain = changed(validated(Domain, "hf://org/name:train"), name="web").located(Path("/elsewhere"))
    split = prepare_domain(domain, tiny_tokenizer(), cache_dir=tmp_path / "cache")
    assert split.train.num_documents + split.valid.num_documents + split.test.num_documents == len(TEXTS)


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}:"
    "{{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}</call>{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TURNS = [
    {"role": "user", "content": "1+2?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]


def supervised(row, tmp_path, template=TEMPLATE, **chat):
    """The text of a conversation and what of it is learned."""
    file = tmp_path / "tools.jsonl"
    file.write_text((json.dumps(row) + "\n") * 30)
    from opmix.data.chat.conversation import iter_conversations
    from opmix.data.chat.template import chat_format
    from opmix.domain import ChatOptions

    (first, *_) = iter_conversations(Source(paths=(str(file),)), domain="tools")
    shown = chat_format(tiny_chat_tokenizer(template=template), ChatOptions(**chat), domain="tools").render(first)
    return shown.text, [shown.text[a:b] for a, b in shown.spans]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS, "tools": TOOLS},
        {"messages": TURNS, "tools": json.dumps(TOOLS)},
        {"messages": [TURNS[0], {**TURNS[1], "content": ""}, *TURNS[2:]], "tools": TOOLS},
        {"prompt": TURNS[:1], "completion": TURNS[1:], "tools": TOOLS},
        {
            "messages": [
                TURNS[0],
                {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}]},
                *TURNS[2:],
            ],
            "tools": [{**TOOLS[0], "strict": None}],
        },
    ],
    ids=["messages", "tools as JSON", "empty content", "prompt and completion", "arguments as JSON"],
)
def test_calls_of_tools_reach_the_template_and_are_learned(row, tmp_path):
    text, learned = supervised(row, tmp_path)
    assert text.startswith(json.dumps(TOOLS))
    assert learned == ['<call>add{"a": 1, "b": 2}</call><|im_end|>', "It is 3.<|im_end|>"]


def test_tools_that_the_template_would_lose_are_refused(tmp_path):
    from opmix.errors import DataError

    plain = TEMPLATE.replace("{% if tools %}{{ tools | tojson }}{% endif %}", "")
    with pytest.raises(DataError, match="has `tools`, which the chat template does not render"):
        supervised({"messages": TURNS, "tools": TOOLS}, tmp_path, plain)
    with pytest.raises(DataError, match="has `tool_calls`, which the chat template does not render"):
        supervised({"messages": TURNS}, tmp_path, plain.replace("tool_calls", "calls"))
    for broken in ([{"x": 1}], ["add"], [7]):
        with pytest.raises(DataError, match="expected a function with a name"):
            supervised({"messages": [TURNS[0], {"role": "assistant", "tool_calls": broken}]}, tmp_path)
    with pytest.raises(DataError, match="`tools` are"):
        supervised({"messages": TURNS, "tools": "add"}, tmp_path)


def test_keyword_arguments_are_the_keys_of_the_file():
    given = {"model", "domains", "budget", "old_mixture"}
    assert set(typing.get_type_hints(SearchKeywords)) == set(keys_of(SearchConfig)) - given


def test_training_arguments_of_the_libraries_are_taken_as_they_are(tmp_path):
    from transformers import TrainingArguments

    from opmix.training.arguments import given_arguments

    plain = TrainingArguments(output_dir=tmp_path, learning_rate=3e-4, use_cpu=True)
    assert given_arguments(plain) == {"learning_rate": 3e-4, "use_cpu": True}
