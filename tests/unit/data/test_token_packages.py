"""Files of token ids written by the packages themselves, where they are installed; see docs/export.md for OPMIX_TRAINERS."""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from opmix.data.in_place import TokensInPlace
from opmix.data.sources import iter_token_documents, resolve
from opmix.domain import Source, SourceFormat

SCRIPT = Path(__file__).parent / "writers" / "write_tokens.py"
FOLDERS = [*sys.path, *filter(None, os.environ.get("OPMIX_TRAINERS", "").split(os.pathsep))]
EOS = 0
KINDS: list[SourceFormat] = ["megatron", "datatrove", "litdata"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_package_writes_is_read(tmp_path: Path, kind: SourceFormat) -> None:
    if importlib.machinery.PathFinder.find_spec(kind, FOLDERS) is None:
        pytest.skip(f"{kind} is not installed; put its folder in OPMIX_TRAINERS")
    rng = np.random.default_rng(7)
    documents = [rng.integers(1, 60_000, int(rng.integers(1, 90))).tolist() for _ in range(60)]
    out = tmp_path / kind
    out.mkdir()
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), kind, str(out)],
        input=json.dumps([[*ids, EOS] for ids in documents]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    source = Source(paths=(str(out),), format=kind)
    assert [ids.tolist() for ids in iter_token_documents(source, EOS)] == documents
    there = TokensInPlace(resolve(source), source.dtype, EOS, "web")
    whole = [i for ids in documents for i in (*ids, EOS)]
    assert there[:].tolist() == whole
    starts = np.cumsum([0, *(len(ids) + 1 for ids in documents[:-1])])
    assert there.starts(0, len(whole)).tolist() == starts.tolist()
    assert there.starts(40, 900).tolist() == [s for s in starts.tolist() if 40 <= s < 900]
