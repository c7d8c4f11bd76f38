"""From files of conversations to tokenised splits; what is no conversation is refused with file and line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opmix.data import prepare_domain, tokenization
from opmix.data.chat.conversation import Conversation, domain_kind, iter_conversations
from opmix.data.chat.template import ChatFormat
from opmix.domain import SPLITS, ChatOptions, Domain, Source
from opmix.errors import DataError
from opmix.testing import CHATML, tiny_chat_tokenizer, tiny_tokenizer, toy_conversations

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
GOOD = {"messages": [USER, ASSISTANT]}


@pytest.fixture(scope="module")
def chat_tokenizer() -> Any:
    return tiny_chat_tokenizer()


def write(folder: Path, rows: list[Any], name: str = "d.jsonl") -> Source:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(paths=(str(path),))


def read(folder: Path, rows: list[Any]) -> list[Conversation]:
    return list(iter_conversations(write(folder, rows), domain="d"))


def chats(folder: Path, num: int = 60, **changes: Any) -> Domain:
    rows = [{"messages": messages} for messages in toy_conversations("alpha", num)]
    return Domain(name="d", train=write(folder, rows), **{"holdout": 0.2, **changes})


class TestReading:
    def test_schemas(self, tmp_path):
        pairs = [
            {"prompt": "q", "completion": "a"},
            {"prompt": [{"role": "system", "content": "s"}, USER, ASSISTANT, USER], "completion": [ASSISTANT]},
        ]
        (messages,) = read(tmp_path, [GOOD])
        plain, long = read(tmp_path, pairs)
        assert [m.plain() for m in messages.messages] == [m.plain() for m in plain.messages] == [USER, ASSISTANT]
        assert messages.answers == plain.answers == [1]
        assert long.answers == [4]  # the answer inside the prompt is given, not learned
        assert messages.where.endswith("d.jsonl:1")

    @pytest.mark.parametrize(
        "row",
        [
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            {"conversations": [USER, ASSISTANT]},
            {"instruction": "q", "input": "", "output": "a"},
            {"instruction": "q", "output": "a"},
            {
                "messages": [
                    {"role": r, "content": [{"type": "text", "text": t}]}
                    for r, t in (("user", "q"), ("assistant", "a"))
                ]
            },
            {
                "messages": [
                    {"role": r, "content": [{"text": ""}, {"text": t}]} for r, t in (("user", "q"), ("assistant", "a"))
                ]
            },
        ],
    )
    def test_instruction_formats_are_chats_without_a_word(self, tmp_path, row):
        (found,) = read(tmp_path, [row])
        assert [m.plain() for m in found.messages] == [USER, ASSISTANT]
        assert domain_kind(Domain(name="d", train=write(tmp_path, [row]))) == "chat"
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
        (table,) = iter_conversations(Source(paths=(str(tmp_path / "d.parquet"),)))
        assert table.messages == found.messages
        (tmp_path / "array.json").write_text(json.dumps([row, row], indent=1))
        assert len(list(iter_conversations(Source(paths=(str(tmp_path / "array.json"),))))) == 2

    def test_an_alpaca_input_and_system_prompt_stand_where_they_belong(self, tmp_path):
        (found,) = read(tmp_path, [{"system": "s", "instruction": "q", "input": "i", "output": "a"}])
        assert [(m.role, m.content) for m in found.messages] == [
            ("system", "s"),
            ("user", "q\n\ni"),
            ("assistant", "a"),
        ]
        assert found.answers == [2]

    def test_further_keys_of_a_turn_reach_the_template(self, tmp_path):
        thinking = {**ASSISTANT, "reasoning_content": "why"}
        (found,) = read(tmp_path, [{"messages": [{**USER, "name": "Ann"}, thinking]}])
        assert found.messages[0].plain()["name"] == "Ann"
        template = CHATML.replace("{{ message.content", "{{ message.reasoning_content or '' }}{{ message.content")
        assert template != CHATML
        rendered = ChatFormat(template=template, special_tokens={"eos_token": "."}).render(found)
        assert "why" in rendered.text
        other = read(tmp_path, [{"messages": [{**USER, "name": "Bob"}, thinking]}])[0]
        assert other.prompt_key != found.prompt_key

    def test_parquet_and_arrow_are_read_alike(self, tmp_path):
        rows = [{"messages": m, "other": 1} for m in toy_conversations("alpha", 5)]
        expected = [c.messages for c in read(tmp_path, rows)]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / "d.parquet")
        datasets.Dataset(table).save_to_disk(tmp_path / "arrow")
        for path in ("d.parquet", "arrow"):
            source = Source(paths=(str(tmp_path / path),))
            assert [c.messages for c in iter_conversations(source)] == expected
            assert domain_kind(Domain(name="d", train=source)) == "chat"

    def test_the_kind_is_told_from_the_first_row(self, tmp_path):
        def kind(row: Any, **changes: Any) -> str:
            return domain_kind(Domain(name="d", train=write(tmp_path, [row]), **changes))

        assert kind(GOOD) == kind({"prompt": "q", "completion": "a"}) == "chat"
        assert kind({"text": "t"}) == kind({"text": "t", **GOOD}) == kind({"prompt": "q"}) == "text"
        assert kind(GOOD, kind="text") == "text"
        (tmp_path / "d.txt").write_text("x")
        assert domain_kind(Domain(name="d", train=Source(paths=(str(tmp_path / "d.txt"),)))) == "text"
        assert domain_kind(Domain(name="d", train=Source(paths=("org/name",), format="hub"))) == "text"

    BAD: ClassVar[dict[str, tuple[Any, str]]] = {
        "role": (
            {"messages": [{"role": "human", "content": "q"}, ASSISTANT]},
            r"role of turn 1 is 'human'; expected one of system",
        ),
        "turn": ({"messages": ["hello", ASSISTANT]}, "role of turn 1 is str"),
        "no answer": ({"messages": [USER]}, r"no assistant turn \(it has user\)"),
        "empty answer": ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "assistant turn 2 is empty"),
        "null answer": ({"messages": [USER, {"role": "assistant", "content": None}]}, "content of turn 2 is null"),
        "parts": ({"messages": [USER, {"role": "assistant", "content": [{"type": "image"}]}]}, "part of type 'image'"),
        "calls": ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"x": "f"}]}]}, "expected a function with a name"),
        "tools": ({**GOOD, "tools": "f"}, "`tools` are"),
        "empty": ({"messages": []}, "the turns are empty"),
        "null": ({"messages": None}, r"has none; expected either"),
        "no user": ({"messages": [ASSISTANT]}, "starts with the assistant's turn"),
        "empty completion": ({"prompt": "q", "completion": ""}, "assistant turn 2 is empty"),
        "completion of the user": (
            {"prompt": [USER], "completion": [USER]},
            "the completion starts with a turn of 'user'",
        ),
        "other fields": ({"question": "q", "answer": "a"}, r"has 'question', 'answer'; expected either `messages`"),
        "both": ({**GOOD, "prompt": "q", "completion": "a"}, "expected either `messages`, `prompt`"),
        "surrogate": ({"prompt": "q", "completion": "\ud83d"}, "half a surrogate"),
    }

    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_row_is_named_with_its_place(self, tmp_path, name):
        row, message = self.BAD[name]
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path, [GOOD if "messages" in row else {"prompt": "q", "completion": "a"}, row])
        assert "domain 'd': " in str(caught.value)
        assert "d.jsonl:2" in str(caught.value)

    def test_mixed_schemas_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"d.jsonl:2: has prompt and completion, the rows before have messages"):
            read(tmp_path, [GOOD, {"prompt": "q", "completion": "a"}])

    def test_a_text_reader_told_of_conversations_says_so(self, tmp_path, chat_tokenizer):
        domain = Domain(name="d", train=write(tmp_path, [GOOD]), kind="text")
        with pytest.raises(DataError, match="kind: chat"):
            prepare_domain(domain, chat_tokenizer, cache_dir=tmp_path)
        (tmp_path / "d.txt").write_text("x")
        with pytest.raises(DataError, match="a text file has no rows"):
            list(iter_conversations(Source(paths=(str(tmp_path / "d.txt"),))))


class TestPreparing:
    def test_masks_lie_beside_the_tokens(self, tmp_path, chat_tokenizer):
        data = prepare_domain(chats(tmp_path), chat_tokenizer, cache_dir=tmp_path / "cache")
        found = 0
        for split in (data[s] for s in SPLITS):
            assert split.mask is not None
            assert split.supervised_tokens == split.mask.sum() < split.num_tokens
            for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True):
                text = chat_tokenizer.decode(split.tokens[a:b].tolist())
                answer = chat_tokenizer.decode(split.tokens[a:b][split.mask[a:b] == 1].tolist())
                assert text.endswith(f"<|im_start|>assistant\n{answer}\n")
                assert answer.endswith("<|im_end|>")
                found += 1
        assert found == 60

    def test_the_cache_knows_template_and_options(self, tmp_path, chat_tokenizer, monkeypatch):
        base = chats(tmp_path)

        def prepared(tokenizer: Any = chat_tokenizer, **options: Any) -> str:
            from dataclasses import replace

            domain = replace(base, chat=ChatOptions(**options))
            return prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache").fingerprint

        first = prepared()
        other = {
            first,
            prepared(supervise="last"),
            prepared(template=CHATML.replace("im_start", "im_begin")),
            prepared(tiny_chat_tokenizer(template="Chat:\n" + CHATML)),
        }
        assert len(other) == 4
        # Packing and truncation happen later; nothing is tokenised again for them, nor the second time.
        monkeypatch.setattr("opmix.data.prepare.encode_chats", lambda *_: pytest.fail("tokenised again"))
        assert prepared() == prepared(packing=False, truncate="left") == first

    def test_the_same_prompt_stays_in_one_split(self, tmp_path, chat_tokenizer):
        rows = [
            {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"{j}"}]}
            for i in range(40)
            for j in range(3)
        ]
        domain = Domain(name="d", train=write(tmp_path, rows), holdout=0.2)
        data = prepare_domain(domain, chat_tokenizer, cache_dir=tmp_path / "cache")
        assert all(data[s].num_documents % 3 == 0 for s in SPLITS)

    def test_teacher_contexts_go_with_the_conversations(self, tmp_path, chat_tokenizer):
        domain = chats(tmp_path)
        data = prepare_domain(domain, chat_tokenizer, cache_dir=tmp_path / "cache")
        teacher = prepare_domain(
            domain, chat_tokenizer, cache_dir=tmp_path / "cache", demonstration="{prompt} # {demonstration} #"
        )
        for split in SPLITS:
            ours, theirs = data[split], teacher[split]
            assert ours.num_documents == theirs.num_documents
            for i in range(ours.num_documents):
                a, b = ours.offsets[i : i + 2]
                assert ours.mask is not None
                answer = chat_tokenizer.decode(ours.tokens[a:b][ours.mask[a:b] == 1][:-1].tolist())
                context = chat_tokenizer.decode(theirs.tokens[theirs.offsets[i] : theirs.offsets[i + 1]].tolist())
                assert f"# {answer} #" in context

    def test_several_processes_give_the_same(self, tmp_path, chat_tokenizer):
        domain = chats(tmp_path)
        one = prepare_domain(domain, chat_tokenizer, cache_dir=tmp_path / "a")
        two = prepare_domain(domain, chat_tokenizer, cache_dir=tmp_path / "b", num_proc=2)
        for split in SPLITS:
            assert np.array_equal(one[split].tokens, two[split].tokens)
            assert np.array_equal(one[split].mask, two[split].mask)

    def test_a_split_with_a_mask_pickles_and_reloads(self, tmp_path, chat_tokenizer):
        split = prepare_domain(chats(tmp_path), chat_tokenizer, cache_dir=tmp_path / "cache").train
        again = pickle.loads(pickle.dumps(split))
        assert np.array_equal(again.mask, split.mask)
        assert again.folder == split.folder

    def test_no_template_is_an_error_before_any_work(self, tmp_path):
        with pytest.raises(DataError, match="has no chat template"):
            prepare_domain(chats(tmp_path), tiny_tokenizer(), cache_dir=tmp_path / "cache")
        assert not (tmp_path / "cache").exists()

    def test_workers_use_the_encoder_given(self, chat_tokenizer):
        encoded = list(tokenization.encode_batches(chat_tokenizer, [["a"], ["b"]], num_proc=2))
        assert [e.mask for e in encoded] == [None, None]
