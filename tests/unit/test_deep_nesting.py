"""What is nested deeper than Python goes is damaged, whoever reads it (found by `make torture PARTS=fuzz SEED=20783`)."""

import io
import zipfile

import numpy as np
import pytest

from opmix.data.sources import iter_token_documents
from opmix.domain import Source
from opmix.errors import OpMixError
from opmix.execution.attempts import note_of
from opmix.execution.tasks import read_task
from opmix.probes.tasks import ProxyLosses
from opmix.runs.store import RunStore
from opmix.runs.trace import read_spans
from opmix.scaffold.trainer_yaml import read_trainer

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("tasks/a.json", lambda folder: read_task(folder, "a")),
        ("trainer.yaml", lambda folder: read_trainer(folder / "trainer.yaml")),
        (
            "index.json",
            lambda folder: list(iter_token_documents(Source(paths=(str(folder / "a.bin"),), format="litdata"), 0)),
        ),
    ],
)
def test_what_is_asked_for_is_an_error_of_ours(tmp_path, file, read):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / "a.bin").write_bytes(bytes(16))
    (tmp_path / file).write_text(
        DEEP[:2_000] if file.endswith("yaml") else DEEP
    )  # PyYAML looks at every one for seconds
    with pytest.raises(OpMixError):
        read(tmp_path)


def test_what_may_be_missing_is_missing(tmp_path):
    (tmp_path / "tasks").mkdir()
    for name in ("tasks/a.job.json", "trace.jsonl", "manifest.json"):
        (tmp_path / name).write_text(DEEP)
    assert note_of(tmp_path, "a") is None
    assert read_spans(tmp_path) == []
    RunStore(tmp_path, "search").check_command()


def test_an_archive_of_a_version_that_zipfile_does_not_read_is_damaged(tmp_path):
    made = io.BytesIO()
    np.savez(made, baseline=np.ones(2))
    content = bytearray(made.getvalue())
    at = content.index(b"PK\x01\x02") + 6
    content[at] = 173  # the version that is needed to read it
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(NotImplementedError):
        zipfile.ZipFile(tmp_path / "s.npz")
    assert ProxyLosses.load(tmp_path / "s.npz", ("a",)) is None
