"""opmix inside axolotl, LLaMA-Factory and DataFlex themselves: whole small trainings that are re-mixed twice.

Each wants other versions than ours of what it stands on; `make consumers` puts those into folders that only its process sees.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from consumers import real, skip_without

import opmix
from opmix.errors import ConfigError
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

pytestmark = [pytest.mark.slow, pytest.mark.consumer]
RUNS = Path(__file__).parent / "consumers"
PINS = os.environ.get("OPMIX_PINS", "")
"""Folder of those folders."""


def trained(name, folder, pins):
    """What a run says of itself, with the pinned packages before all others."""
    skip_without(name, PINS and importlib.util.find_spec(name))
    source = Path(opmix.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(RUNS / f"{name}_run.py"), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(source), str(Path(PINS) / pins)]),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DISABLE_VERSION_CHECK": "1",  # of LLaMA-Factory, which asks for an older peft
            "AXOLOTL_DO_NOT_TRACK": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", ["axolotl", "llamafactory"])
def test_a_training_from_its_own_yaml_is_re_mixed_twice(name, tmp_path):
    told = trained(name, tmp_path, name)
    assert [step for step, _ in told["switches"]] == [2, 4]
    assert told["reports"] == ["step-2", "step-4"]
    assert (told["steps"], told["served"], told["saved"]) == (6, 12, True)
    assert len(told["losses"]) == 6
    assert all(map(math.isfinite, told["losses"]))


def test_dataflex_asks_its_mixer_twice_and_trains_on_what_it_says(tmp_path):
    told = trained("dataflex", tmp_path, "llamafactory")
    first, *rest = told["rows"]
    assert first == [0.75, 0.25]  # what its own YAML begins with
    assert len(told["found"]) == 2
    # Its rows of the pretraining stage are packed to one length: shares of rows are shares of tokens.
    assert rest == [pytest.approx([found["web"], found["code"]]) for found in told["found"]]
    assert (told["steps"], len(told["losses"])) == (6, 6)


@pytest.fixture
def manager():
    """DataFlex' own, with rows of 10 tokens of one domain and of 30 of the other."""
    real("dataflex")
    from dataflex.train.dataset.mixed_proportion_manager import MixedProportionManager
    from datasets import Dataset

    rows = {name: Dataset.from_dict({"input_ids": [[1] * n] * 20}) for name, n in (("web", 10), ("code", 30))}
    return MixedProportionManager(rows, proportions=[0.9, 0.1])


@pytest.mark.filterwarnings("default")
def test_shares_of_tokens_become_shares_of_dataflex_rows(manager, tmp_path):
    from dataflex.core.registry import REGISTRY

    import opmix.plugins.dataflex  # noqa: F401  registers

    files = {name: str(path) for name, path in write_toy_domains(tmp_path / "data", ["web", "code"]).items()}
    tokenizer = tiny_tokenizer()
    search = {
        "sequence_length": 32,
        "probes": {"steps": 2, "rank": 2},
        "proxies": {"eval_sequences": 4},
        "cache_dir": str(tmp_path / "cache"),
        "decision": {"draws": 10, "verify": False},
        "trainer": {"per_device_train_batch_size": 2, "use_cpu": True},
    }
    runtime = {"data_collator": type("Collator", (), {"tokenizer": tokenizer})(), "output_dir": str(tmp_path)}
    settings = {"mixture_manager": manager, "domains": files, "budget": 5_000, "search": search}
    mixer = REGISTRY.build("mixer", "opmix", runtime=runtime, cfg=settings)
    rows = mixer.mix(tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64), 7)
    (found,) = mixer.results
    assert found.config.old_mixture == pytest.approx({"web": 0.9 * 10 / 12, "code": 0.1 * 30 / 12})
    tokens = rows * [10, 30]
    assert dict(zip(("web", "code"), tokens / tokens.sum(), strict=True)) == pytest.approx(dict(found.mixture))
    assert (tmp_path / "opmix" / "step-7" / "report.html").is_file()
    with pytest.raises(ConfigError, match="those of DataFlex, web, code"):
        REGISTRY.build("mixer", "opmix", runtime=runtime, cfg={**settings, "domains": {"web": files["web"]}})
