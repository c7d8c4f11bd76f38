"""The section `opmix` of other trainers' YAML: what is refused before a model is loaded."""

import pytest

from opmix.errors import ConfigError
from opmix.plugins.section import section_of, whole_run
from opmix.testing import tiny_tokenizer, write_toy_domains


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("section")
    files = {name: str(path) for name, path in write_toy_domains(folder / "data", ["web", "code"]).items()}
    return {"domains": files, "mixture": {"web": 0.5, "code": 0.5}, "every": "1k", "cache_dir": str(folder / "cache")}


def test_a_section_is_a_stream_and_a_callback(content, tmp_path):
    search = {"probes": {"steps": 3}}
    section = section_of({**content, "search": search}, "its YAML")
    stream = section.stream(tiny_tokenizer(), rows=whole_run(5, 2), sequence_length=16)
    remix = section.callback(stream, tmp_path)
    assert (len(stream), remix.every, remix.out) == (10, 1000, tmp_path / "opmix")
    assert remix.settings["probes"] == search["probes"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mixture": {"wab": 1.0}}, "wab is no domain"),
        ({"at": [5]}, "either at"),
        ({"evry": 5}, "every"),
        ({"every": None}, "either at"),
    ],
)
def test_what_cannot_hold_is_said_with_its_place(content, change, said):
    with pytest.raises(ConfigError, match=said) as raised:
        section_of({**content, **change}, "its YAML")
    assert "its YAML, section opmix" in str(raised.value)


def test_no_section_and_no_steps():
    with pytest.raises(ConfigError, match="no section `opmix`"):
        section_of(None, "axolotl's YAML")
    with pytest.raises(ConfigError, match="max_steps: -1"):
        whole_run(-1, 2)
