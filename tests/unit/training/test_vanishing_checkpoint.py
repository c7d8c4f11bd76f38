"""A checkpoint that another rank removes while this one looks is none."""

import json

from opmix.training import checkpoints
from opmix.training.checkpoints import MARKER, whole_checkpoints


def test_a_checkpoint_that_vanishes_meanwhile_is_not_there(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-8"
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"moments")
    (folder / MARKER).write_text(json.dumps({"files": {"optimizer.pt": 7}, "step": 8, "key": "k"}))
    assert whole_checkpoints(tmp_path, "k") == [(8, folder)]

    def gone(folder):
        (folder / "optimizer.pt").unlink()
        return {"optimizer.pt": (folder / "optimizer.pt").stat().st_size}

    monkeypatch.setattr(checkpoints, "_sizes", gone)
    assert whole_checkpoints(tmp_path, "k") == []
