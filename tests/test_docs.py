"""The documentation tells of every setting, and its example configuration is valid."""

from pathlib import Path

from pydantic import BaseModel

from opmix.config import SearchConfig, load_config

ROOT = Path(__file__).parents[1]


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "search.md").read_text()
    checked = 0
    for name, field in SearchConfig.model_fields.items():
        assert name in text, name
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            for key in inner.model_fields:
                checked += 1
                assert key in text, f"{name}.{key}"
    assert checked > 25


def test_the_example_configuration_is_valid():
    config = load_config(ROOT / "examples" / "search.yaml")
    assert config.budget.tokens == 2_000_000_000
    assert config.solve.loss_limits == {"web": 2}
