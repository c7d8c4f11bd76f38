"""The demo's text: what nobody trains on is in no domain."""

import json

import pytest

from opmix.demo.texts import POOL, SOURCES, TARGET, write_domains
from opmix.errors import DataError


def test_every_part_of_the_demo_has_a_source():
    assert {*POOL, *TARGET} <= set(SOURCES)
    assert not set(POOL) & set(TARGET)
    assert len(set(POOL.values())) > 1  # of unequal size


def test_the_target_is_in_no_domain(tmp_path):
    written = write_domains(tmp_path, {"numeric_code": 40_000, "graph_library": 40_000}, fewest=2)
    texts = {n: {json.loads(line)["text"] for line in p.read_text().splitlines()} for n, p in written.items()}
    assert min(sum(map(len, t)) for t in texts.values()) > 20_000
    assert not texts["numeric_code"] & texts["graph_library"]


def test_too_little_text_is_said(tmp_path):
    with pytest.raises(DataError, match="graph_library"):
        write_domains(tmp_path, {"graph_library": 10**9}, fewest=1)
