"""What the benchmarks share: a small Llama and tokenizer from scratch on given domains, kept in a folder."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from opmix.cli.console import Display
from opmix.config import SearchConfig
from opmix.data import PackedSequences, prepare_domain
from opmix.demo.run import search_config, train_tokenizer
from opmix.domain import Domain, Source
from opmix.mixing.mixture import Mixture
from opmix.training.full import train_on_mixture

LENGTH = 128
STEP_SEQUENCES = 8
TRAINER: dict[str, Any] = {
    "per_device_train_batch_size": STEP_SEQUENCES,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_scheduler_kwargs": {"num_decay_steps": 40, "min_lr_ratio": 0.1},
    "warmup_steps": 20,
    "weight_decay": 0.1,
}


PREFIX_STEPS, STAGE_STEPS = 450, 300
"""Of the stage of six domains of unlike text that was the demo's until 2026-11-26; its results are kept."""


def rebalancing_config(files: Mapping[str, Path], out: Path, seed: int) -> SearchConfig:
    """The search of that stage: no target, adapters of 60 steps."""
    config = search_config(files, out, seed)
    budget = replace(config.budget, tokens=STAGE_STEPS * STEP_SEQUENCES * LENGTH)
    probes, proxies = replace(config.probes, kind="lora", steps=60), replace(config.proxies, eval_sequences=48)
    return replace(config, budget=budget, probes=probes, proxies=proxies)


def shared_domains(data: Path, names: list[str]) -> dict[str, Domain]:
    """Domains in folders of train.jsonl.gz and valid.jsonl.gz; test is split off train."""
    return {
        n: Domain(
            name=n,
            train=Source(paths=(str(data / n / "train.jsonl.gz"),)),
            valid=Source(paths=(str(data / n / "valid.jsonl.gz"),)),
        )
        for n in names
    }


def tokenizer_for(domains: Mapping[str, Domain]) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the start of every domain."""
    return train_tokenizer({n: Path(d.train.paths[0]) for n, d in domains.items()})


def packed(domains: Mapping[str, Domain], tokenizer: Any, cache: Path) -> dict[str, dict[str, PackedSequences]]:
    """Every split of every domain as sequences of 128 tokens."""
    data = {n: prepare_domain(d, tokenizer, cache_dir=cache) for n, d in domains.items()}
    return {s: {n: PackedSequences(d[s], LENGTH) for n, d in data.items()} for s in ("train", "valid", "test")}


def small_llama(tokenizer: Any, width: int = 128) -> LlamaForCausalLM:
    """Four layers, untrained: 1.1 M parameters at a width of 128, 0.34 M at 64."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def base_model(
    folder: Path,
    tokenizer: Any,
    train: Mapping[str, PackedSequences],
    mixture: Mixture,
    steps: int,
    seed: int,
    width: int = 128,
) -> LlamaForCausalLM:
    """A small Llama trained from scratch on `mixture` for some steps, or loaded where that was done before."""
    if not (folder / "config.json").exists():
        torch.manual_seed(seed)
        model = small_llama(tokenizer, width)
        warm = {**TRAINER, "lr_scheduler_type": "constant_with_warmup", "learning_rate": 3e-3}
        warm.pop("lr_scheduler_kwargs")
        with Display() as display:
            train_on_mixture(
                model,
                train,
                mixture,
                tokens=steps * STEP_SEQUENCES * LENGTH,
                arguments=warm,
                seed=seed,
                output_dir=folder / "trainer",
                progress=display,
                name=f"base model, {steps} steps",
            )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def files_of(data: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """Domains as a configuration names them."""
    return {n: {s: str((data / n / f"{s}.jsonl.gz").resolve()) for s in ("train", "valid")} for n in names}


def search_as_a_user(folder: Path, config: Mapping[str, Any]) -> int:
    """Write search.yaml and run `opmix search` on it; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    command = [
        sys.executable,
        "-m",
        "opmix.cli.main",
        "search",
        str(folder / "search.yaml"),
        "--out",
        str(folder / "search"),
    ]
    return subprocess.run(command, check=False).returncode


def record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result with machine and date."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.platform(),
        "torch_threads": torch.get_num_threads(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, **content}, indent=2) + "\n")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that all benchmarks take."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--data", type=Path, default=Path("../shared/data/pretrain"), help="folders of {train,valid}.jsonl.gz"
    )
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments.add_argument("--seed", type=int, default=0)
    return arguments
