"""Sample folders, written once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import samples


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return samples.write_all(tmp_path_factory.mktemp("report-samples"))


@pytest.fixture
def edited(folders, tmp_path):
    """A copy of a sample's mixture.json with changes applied by a function."""

    def make(change, name: str = "continual", **files: object) -> Path:
        document = json.loads((folders[name] / "mixture.json").read_text())
        change(document)
        (tmp_path / "mixture.json").write_text(json.dumps(document))
        for stem, content in files.items():
            (tmp_path / f"{stem}.json").write_text(json.dumps(content))
        return tmp_path

    return make
