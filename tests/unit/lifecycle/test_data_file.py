"""`data.json`: what is written is read again; what is damaged is said by file, place and remedy."""

import json
import os
from dataclasses import replace

import pytest
from lives import facts

from opmix.errors import StoreError
from opmix.lifecycle.data_file import DataFile
from opmix.lifecycle.steps import StageRows


@pytest.fixture
def recorded(tmp_path):
    text = tmp_path / "alpha.txt"
    text.write_text("words")
    rows = StageRows(rows={"alpha": 7}, worth={"alpha": 31.5}, objective="sft")
    known = text.stat()
    return DataFile(
        facts=replace(facts(), stages=(rows,)),
        files={"alpha": {str(text): (known.st_size, known.st_mtime_ns)}},
        tokens={"alpha": 220},
    )


@pytest.mark.parametrize("name", ["data.json", "data-sft.json"])
def test_what_is_written_is_read_again(recorded, tmp_path, name):
    recorded.write(tmp_path, name)
    assert DataFile.read(tmp_path, name) == recorded
    assert list(json.loads((tmp_path / name).read_text())) == [
        *("tokenizer", "fingerprints", "rows", "model", "stages", "files", "tokens", "schema")
    ]


def test_a_file_that_changed_or_went_is_seen(recorded, tmp_path):
    path = tmp_path / "alpha.txt"
    assert recorded.changed() == ()
    os.utime(path, ns=(0, 0))
    assert recorded.changed() == ("alpha",)
    path.unlink()
    assert recorded.changed() == ("alpha",)


@pytest.mark.parametrize("place", ["tokenizer", "fingerprints", "rows", "files", "tokens"])
@pytest.mark.parametrize("value", [..., 3])
def test_what_is_damaged_is_named(recorded, tmp_path, place, value):
    recorded.write(tmp_path)
    path = tmp_path / "data.json"
    content = {
        k: value if k == place else v for k, v in json.loads(path.read_text()).items() if (k, value) != (place, ...)
    }
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=rf"data\.json: damaged: {place}: .*run the command again"):
        DataFile.read(tmp_path)


def test_where_there_is_none_the_folder_is_not_of_a_life(tmp_path):
    with pytest.raises(StoreError, match=r"no data\.json; expected the --out folder of `opmix run` or `opmix compare`"):
        DataFile.read(tmp_path)
