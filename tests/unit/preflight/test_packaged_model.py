"""A model inside an installed package, by its address."""

import pytest

from opmix.errors import ConfigError
from opmix.models.files import located
from opmix.models.layers import model_fingerprint
from opmix.models.load import load_model, load_tokenizer
from opmix.preflight import validate
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """The address of a model in a package on the path, and the model."""
    inside = tmp_path / "packages" / "opmix_kept_model" / "small"
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    model.save_pretrained(inside)
    tokenizer.save_pretrained(inside)
    (inside.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return "package://opmix_kept_model/small", model


def test_it_is_loaded_from_there(packaged, tmp_path):
    address, model = packaged
    assert located(address, tmp_path) == str(tmp_path / "packages" / "opmix_kept_model" / "small")
    assert model_fingerprint(load_model(address, dtype="float32", device="cpu")) == model_fingerprint(model)
    assert len(load_tokenizer(address)) == model.config.vocab_size


def checked(folder, address):
    files = write_toy_domains(folder / "data", ["web", "code"])
    domains = ", ".join(f"{name}: {path}" for name, path in files.items())
    (folder / "search.yaml").write_text(
        f"model: {address}\ndomains: {{{domains}}}\nbudget: {{tokens: 20000}}\nsequence_length: 64\n"
    )
    return {check.name: check for check in validate(folder / "search.yaml").checks}


def test_validate_finds_it(packaged, tmp_path):
    address, model = packaged
    found = checked(tmp_path, address)["model"]
    assert found.status == "ok"
    assert f"{model.num_parameters():,} parameters" in found.detail


def test_a_package_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="package 'opmix_none' is not installed here"):
        load_model("package://opmix_none/m.gguf")
    found = checked(tmp_path, "package://opmix_none/m.gguf")["model"]
    assert found.status == "fail"
    assert "package 'opmix_none' is not installed" in found.detail
