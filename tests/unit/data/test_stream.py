"""A stream whose mixture changes while it is read."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from opmix.data import MixtureStream
from opmix.data.cache import TokenizedDomain
from opmix.errors import DataError

LENGTH = 8


def domain(make_split, name, sequences):
    split = make_split([LENGTH * sequences], name)
    return TokenizedDomain(name=name, train=split, valid=split, test=split)


@pytest.fixture
def make(make_split):
    def build(mixture=None, num=40, **settings):
        data = {name: domain(make_split, name, size) for name, size in {"a": 30, "b": 30, "c": 10}.items()}
        mixture = mixture or {"a": 0.5, "b": 0.5}
        return MixtureStream(data, None, mixture, num_sequences=num, sequence_length=LENGTH, **settings)

    return build


def shares(stream, part):
    counts = stream.plan[part].counts()
    return {name: n / sum(counts.values()) for name, n in counts.items()}


def test_a_switch_keeps_what_was_and_goes_on_where_each_domain_stands(make):
    stream, unswitched = make(), make()
    stream.switch(20, {"a": 0.25, "c": 0.75})
    assert len(stream) == 40
    assert dict(stream.mixture) == {"a": 0.25, "b": 0.0, "c": 0.75}
    for i in range(20):
        assert torch.equal(stream[i]["input_ids"], unswitched[i]["input_ids"])
    assert shares(stream, slice(0, 20)) == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert shares(stream, slice(20, 40)) == {"a": 0.25, "b": 0.0, "c": 0.75}
    rows = stream.plan.row[stream.plan.domain == 0]
    assert len(set(rows.tolist())) == len(rows) == 15
    assert np.array_equal(rows, unswitched.plan.row[unswitched.plan.domain == 0][:15])


def test_the_same_mixture_is_no_switch(make):
    stream, unswitched = make(), make()
    stream.switch(20, {"a": 0.5, "b": 0.5})
    assert stream.plan.fingerprint == unswitched.plan.fingerprint


def test_rows_look_as_a_trainer_wants_them(make):
    item = make(document_mask=True)[0]
    assert set(item) == {"input_ids", "labels", "position_ids"}
    assert torch.equal(item["input_ids"], item["labels"])
    assert item["input_ids"].shape == (LENGTH,)


def test_what_was_handed_out_cannot_change(make):
    stream = make()
    assert stream.served == 0
    _ = stream[9]
    assert stream.served == 10
    with pytest.raises(DataError, match="cannot change at sequence 9: 10 have been handed out; expected a later one"):
        stream.switch(9, {"c": 1.0})
    stream.switch(10, {"b": 1.0})
    stream.switch(5, {"a": 1.0}, check=False)
    assert shares(stream, slice(5, 40))["a"] == 1


def test_limits_hold_over_switches(make):
    stream = make(max_epochs={"a": 1, "c": 1})
    with pytest.raises(DataError, match="domain 'c'"):
        stream.switch(20, {"c": 1.0})
    assert shares(stream, slice(20, 40))["c"] == 0  # a switch that fails changes nothing
    with pytest.raises(DataError, match="domain 'a'"):
        make({"a": 1.0}, max_epochs={"a": 1})


def test_unknown_domains_are_refused(make):
    with pytest.raises(Exception, match="d"):
        make().switch(20, {"d": 1.0})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_switch_reaches_the_loaders_workers(make, workers):
    """Nothing before the index changes and everything after it does, with what workers hold in advance counted."""
    stream, expected = make(num=80), make(num=80)
    loader = iter(DataLoader(stream, batch_size=2, num_workers=workers, prefetch_factor=2 if workers else None))
    batches = [next(loader) for _ in range(3)]
    index = 6 + workers * 2 * 2  # 3 batches read, 2 in advance for each worker
    stream.switch(index, {"c": 1.0})
    expected.switch(index, {"c": 1.0})
    batches += list(loader)
    found = torch.cat([batch["input_ids"] for batch in batches])
    assert torch.equal(found, torch.stack([expected[i]["input_ids"] for i in range(80)]))


def test_opening_reads_and_tokenises(tokenizer, write_jsonl, tmp_path):
    texts = [f"document number {i} about nothing in particular, {i * i}" for i in range(60)]
    files = {name: str(write_jsonl(texts, f"{name}.jsonl")) for name in ("a", "b")}
    stream = MixtureStream.open(
        files, tokenizer, {"a": 1.0}, cache_dir=tmp_path, num_sequences=8, sequence_length=LENGTH
    )
    assert tokenizer.decode(stream[0]["input_ids"])
    assert dict(stream.mixture) == {"a": 1.0, "b": 0.0}
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        MixtureStream.open(
            {"a": "nowhere.jsonl"}, tokenizer, {"a": 1.0}, cache_dir=tmp_path, num_sequences=8, sequence_length=LENGTH
        )
