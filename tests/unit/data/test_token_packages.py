"""Files of token ids written and read by the packages themselves, where they are installed; see docs/export.md for OPMIX_TRAINERS."""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from consumers import skip_without

from opmix.data import token_writers
from opmix.data.in_place import TokensInPlace
from opmix.data.sources import iter_token_documents, resolve
from opmix.data.token_files import open_tokens
from opmix.domain import Source, SourceFormat

SCRIPTS = Path(__file__).parent / "writers"
FOLDERS = [*sys.path, *filter(None, os.environ.get("OPMIX_TRAINERS", "").split(os.pathsep))]
EOS = 0
KINDS: list[SourceFormat] = ["megatron", "datatrove", "litdata"]


def ran(script: str, package: str, *words: object, given: str = "") -> str:
    """What a script says in a process of its own."""
    skip_without(package, importlib.machinery.PathFinder.find_spec(package, FOLDERS))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPTS / script), *map(str, words)],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def documents() -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(1, 60_000, int(rng.integers(1, 90))).tolist() for _ in range(60)]


@pytest.mark.slow
@pytest.mark.consumer
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_package_writes_is_read(tmp_path: Path, kind: SourceFormat) -> None:
    out = tmp_path / kind
    out.mkdir()
    ran("write_tokens.py", kind, kind, out, given=json.dumps([[*ids, EOS] for ids in documents()]))
    source = Source(paths=(str(out),), format=kind)
    assert [ids.tolist() for ids in iter_token_documents(source, EOS)] == documents()
    there = TokensInPlace(resolve(source), source.dtype, EOS, "web")
    whole = [i for ids in documents() for i in (*ids, EOS)]
    assert there[:].tolist() == whole
    starts = np.cumsum([0, *(len(ids) + 1 for ids in documents()[:-1])])
    assert there.starts(0, len(whole)).tolist() == starts.tolist()
    assert there.starts(40, 900).tolist() == [s for s in starts.tolist() if 40 <= s < 900]


READERS = {"megatron": "megatron", "nanotron": "datatrove", "litdata": "litdata", "streaming": "streaming"}


@pytest.mark.slow
@pytest.mark.consumer
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("to", READERS)
def test_the_package_reads_what_is_written(
    tmp_path: Path, to: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_writers, "_CHUNK", 1000)
    out = tmp_path / to
    out.mkdir()
    ids = [np.array([*document, EOS]) for document in documents()]
    token_writers.TOKEN_WRITERS[to].write(out, iter(ids), dtype, 16)
    found = json.loads(ran("read_tokens.py", READERS[to], to, out, 16).splitlines()[-1])
    if to == "megatron":
        assert found == [document.tolist() for document in ids]
        return
    whole = np.concatenate(ids)
    files = sorted(out.glob("chunk-*.bin"))
    if to == "litdata":  # sequences end with a chunk
        assert len(files) > 1
        parts = [open_tokens(file, "litdata", "", "web").tokens for file in files]
        assert np.concatenate(parts).tolist() == whole.tolist()
        assert found == [list(map(int, row)) for part in parts for row in part[: len(part) // 16 * 16].reshape(-1, 16)]
        return
    assert found == whole[: len(whole) // 16 * 16].reshape(-1, 16).tolist()
