"""What other processes of a search are told, and what is refused before any is started."""

import json

import pytest
import torch

from opmix.config import parse_config
from opmix.errors import ConfigError, StoreError
from opmix.execution.attempts import JobNote, notes_in, write_note
from opmix.execution.context import FILE
from opmix.mixture_search.hand_over import devices_of, elsewhere
from opmix.mixture_search.worker import search_worker
from opmix.preflight.checks import Findings
from opmix.preflight.plan import check_executor
from opmix.runs.store import RunStore
from opmix.testing import tiny_model, tiny_tokenizer

CONFIG = {
    "model": {"name": "m", "device": "cpu", "dtype": "bfloat16"},
    "domains": {"a": "a.jsonl", "b": "b.jsonl"},
    "budget": 1000,
    "executor": {"slots": 2},
}


def config_of(**changes):
    return parse_config({**CONFIG, **changes})


def others(config, store, model, given=(None, None), make_trainer=None):
    return elsewhere(config, store.folder, store, model=model, given=given, make_trainer=make_trainer)


def checked(config, findings):
    check_executor(config.executor, config.model.device, config.model.dtype, findings)


def test_one_slot_is_this_process(tmp_path):
    assert others(config_of(executor={"slots": 1}), RunStore(tmp_path), tiny_model()) is None


def test_whoever_holds_the_folder_and_does_its_works_has_jobs_of_schedulers_end_and_nobody_else(tmp_path):
    (tmp_path / "tasks").mkdir()
    note, alone = JobNote(attempt="a", key="k", engine="slurm", job="1"), config_of(executor={"slots": 1})
    write_note(tmp_path, "probe-00", note)
    others(alone, RunStore(tmp_path), tiny_model())  # as the process of a task does
    assert notes_in(tmp_path) == {"probe-00": note}
    with RunStore(tmp_path) as store:
        others(alone, store, tiny_model())
        assert notes_in(tmp_path) == {}


def test_what_no_other_process_can_have_is_refused(tmp_path, monkeypatch):
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"executor.slots: 2; make_trainer is an object of this process"):
        others(config_of(), RunStore(tmp_path), model, make_trainer=lambda spec: None)
    with pytest.raises(ConfigError, match="load models in float32 or bfloat16, not in float16"):
        others(config_of(), RunStore(tmp_path), model.half(), given=(model, None))
    store = RunStore(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"executor.slots: 2; WORLD_SIZE is 2: expected one of both"):
        others(config_of(), store, model)
    assert list(tmp_path.iterdir()) == []


def test_every_slot_has_a_gpu_of_its_own_among_those_that_are_visible(monkeypatch):
    wanted = config_of().executor
    assert devices_of(wanted, "cpu") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-3a,7")
    assert devices_of(wanted, "cuda") == ["5", "GPU-3a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(ConfigError, match=r"executor.slots: 2; expected at most 1, the GPUs that there are"):
        devices_of(wanted, "cuda")
    findings = Findings([])
    checked(config_of(model={"name": "m", "device": "cuda"}), findings)
    checked(config_of(), findings)
    assert [(check.name, check.status) for check in findings.checks] == [("executor", "fail"), ("executor", "ok")]


def test_validate_says_what_would_be_started_and_what_cannot_be(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm there
    findings = Findings([])
    checked(config_of(executor={"kind": "launch", "slots": 3, "launch": "srun {command}"}), findings)
    checked(config_of(executor={"kind": "slurm"}), findings)
    on_gpus = {"kind": "slurm", "resources": {"gpus": 1}}
    checked(config_of(model={"name": "m", "device": "cpu"}, executor=on_gpus), findings)
    launch, slurm, precision = findings.checks
    assert (launch.status, slurm.status, precision.status) == ("ok", "fail", "fail")
    assert launch.detail.startswith(
        "3 tasks at once: each by the command 'srun {command}'; all must see the run folder"
    )
    assert "sbatch, squeue, scancel not found" in slurm.detail + slurm.remedy
    assert "model.dtype: auto" in precision.detail + precision.remedy


def test_objects_travel_as_files_that_go_with_the_lock(tmp_path):
    model, tokenizer = tiny_model().to(torch.bfloat16), tiny_tokenizer()
    model.model.embed_tokens.weight.requires_grad_(False)
    with RunStore(tmp_path) as store:
        executor = others(config_of(), store, model, given=(model, tokenizer)).executor
        assert not (tmp_path / "tasks").exists()  # nothing is written before there is something to do
        executor._prepare()
        told = json.loads((tmp_path / FILE).read_text())
        copy = tmp_path / "tasks" / "copy"
        assert (copy / "config.json").exists()
        assert told["frozen"] == ["model.embed_tokens.weight"]
        config = parse_config(told["config"])
        assert (config.model.name, config.model.tokenizer, config.model.dtype) == (str(copy), str(copy), "bfloat16")
        assert not config.executor.elsewhere
    assert not copy.exists()


def test_a_task_without_a_search_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"tasks/context.json: cannot be read .* start that run"):
        search_worker(tmp_path)
