"""`opmix demo`: pretrain a small Llama on real text for a prefix, search, train on, and compare with uniform."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opmix.config import SearchConfig, parse_config
from opmix.data import PackedSequences, TokenizedDomain, iter_documents, prepare_domain
from opmix.demo.texts import POOL, TARGET, write_domains
from opmix.domain import Source
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.search import SearchResult, run_search
from opmix.models import from_scratch as scratch
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.progress import Progress, Silent
from opmix.results.demo import Arm, DemoComparison
from opmix.runs.store import RunStore
from opmix.training.full import train_on_mixture

VOCABULARY = 2048
LENGTH = 128
PREFIX_STEPS = 240
STAGE_STEPS = 240
STEP_SEQUENCES = 8

ARCHITECTURE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
}
PREFIX_TRAINER: dict[str, Any] = {
    "per_device_train_batch_size": STEP_SEQUENCES,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 30,
    "weight_decay": 0.1,
}
STAGE_TRAINER: dict[str, Any] = {
    **PREFIX_TRAINER,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 20,
}


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The search, and what training on its answer gave."""

    search: SearchResult
    comparison: DemoComparison


def run_demo(out: Path, *, seed: int = 0, progress: Progress | None = None) -> DemoResult:
    """Run the demo; see `opmix.demo.texts` for the text.

    Raises:
        DataError: Too little text on this machine.
        StoreError: The folder holds a run of another command.
    """
    progress = progress or Silent()
    RunStore(out, "search").check_command()
    torch.manual_seed(seed)
    files, targets = write_domains(out / "data", POOL), write_domains(out / "data", TARGET, fewest=len(TARGET))
    tokenizer = train_tokenizer(files)
    config = search_config(files, out, seed, targets)
    sets = {n: target.domain(n, Path()) for n, target in config.targets.items()}
    sets |= {n: domain.located(Path()) for n, domain in config.domains.items()}
    data = {name: prepare_domain(domain, tokenizer, cache_dir=out / "cache") for name, domain in sets.items()}
    train = {name: PackedSequences(data[name].train, LENGTH) for name in files}
    model = new_model(tokenizer, seed)
    uniform = Mixture.uniform(tuple(files))
    parameters = sum(p.numel() for p in model.parameters())
    progress.note(
        f"{len(files)} domains, {sum(data[n].train.num_tokens for n in files):,} training tokens; a mixture for "
        f"{', '.join(targets)}, which nobody trains on; a Llama of {parameters:,} parameters"
    )
    train_on_mixture(
        model,
        train,
        uniform,
        tokens=PREFIX_STEPS * STEP_SEQUENCES * LENGTH,
        arguments=PREFIX_TRAINER,
        seed=seed,
        output_dir=out / "trainer",
        progress=progress,
        name="prefix on the uniform mixture",
    )
    result = run_search(config, model=model, tokenizer=tokenizer, out=out, progress=progress)
    moved = result.verdict.decision.action == "move"
    arms = {"proposal": result.mixture if moved else result.verdict.optimum.mixture, "uniform": uniform}
    measured = {
        name: _train_arm(model, train, mixture, data, name, out, seed, progress) for name, mixture in arms.items()
    }
    comparison = compare(result, arms, measured, tuple(targets))
    comparison.write(out)
    from opmix.report import write_report

    write_report(out)
    return DemoResult(search=result, comparison=comparison)


def train_tokenizer(files: Mapping[str, Path]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,048 tokens, trained on the start of every domain."""
    texts = (
        text
        for path in files.values()
        for text, _ in zip(iter_documents(Source(paths=(str(path),))), range(80), strict=False)
    )
    return scratch.train_tokenizer(texts, VOCABULARY)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """A Llama of about a million parameters from scratch."""
    return scratch.new_model(ARCHITECTURE, tokenizer, seed)


def search_config(
    files: Mapping[str, Path], out: Path, seed: int, targets: Mapping[str, Path] | None = None
) -> SearchConfig:
    """The demo's `search.yaml`."""
    return parse_config(
        {
            "model": "<model object>",
            "domains": {name: {"train": str(path.resolve()), "holdout": 0.06} for name, path in files.items()},
            "budget": {"tokens": STAGE_STEPS * STEP_SEQUENCES * LENGTH},
            "sequence_length": LENGTH,
            "trainer": STAGE_TRAINER,
            "targets": {name: str(path.resolve()) for name, path in (targets or {}).items()},
            "probes": {"kind": "full"},
            "proxies": {"eval_sequences": 48},
            "cache_dir": str(out / "cache"),
            "seed": seed,
        }
    )


def _train_arm(
    base: PreTrainedModel,
    train: Mapping[str, PackedSequences],
    mixture: Mixture,
    data: Mapping[str, TokenizedDomain],
    name: str,
    out: Path,
    seed: int,
    progress: Progress,
) -> dict[str, tuple[float, float]]:
    """Test loss and its standard error per domain after training a copy on the mixture."""
    model = copy.deepcopy(base)
    train_on_mixture(
        model,
        train,
        mixture,
        tokens=STAGE_STEPS * STEP_SEQUENCES * LENGTH,
        arguments=STAGE_TRAINER,
        seed=seed + 1,
        output_dir=out / "trainer",
        progress=progress,
        name=f"training on the {name} mixture",
    )
    test = [held_out(n, PackedSequences(d.test, LENGTH), num=96, seed=seed) for n, d in data.items()]
    measured = evaluate(model, test)
    return {
        n: (float(loss), float(error))
        for n, loss, error in zip(measured.names, measured.losses[0], measured.standard_errors[0], strict=True)
    }


def compare(
    result: SearchResult,
    arms: Mapping[str, Mixture],
    measured: Mapping[str, Mapping[str, tuple[float, float]]],
    targets: Sequence[str],
) -> DemoComparison:
    """Prediction beside measurement, whichever arm wins; judged by the targets."""
    predicted = {
        name: dict(zip(result.law.metrics, map(float, result.law.predict(mixture.weights)[0]), strict=True))
        for name, mixture in arms.items()
    }
    means = {name: float(np.mean([losses[t][0] for t in targets])) for name, losses in measured.items()}
    told = {name: float(np.mean([losses[t] for t in targets])) for name, losses in predicted.items()}
    gain, forecast = means["uniform"] - means["proposal"], told["uniform"] - told["proposal"]
    winner = "proposal" if gain > 0 else "uniform"
    others = {
        name: float(np.mean([loss for m, (loss, _) in losses.items() if m not in targets]))
        for name, losses in measured.items()
    }
    return DemoComparison(
        tokens=STAGE_STEPS * STEP_SEQUENCES * LENGTH,
        arms={
            name: Arm(
                mixture=dict(mixture),
                measured={m: loss for m, (loss, _) in measured[name].items()},
                standard_error={m: error for m, (_, error) in measured[name].items()},
                predicted=predicted[name],
            )
            for name, mixture in arms.items()
        },
        winner=winner,
        measured_gain=gain,
        predicted_gain=forecast,
        sentence=(
            f"After {STAGE_STEPS * STEP_SEQUENCES * LENGTH:,} equal tokens the {winner} mixture is better at "
            f"{', '.join(targets)}, which neither trained on: test loss {means['proposal']:.4f} nats for the proposal, "
            f"{means['uniform']:.4f} for uniform, so {np.expm1(-gain):+.1%} perplexity (predicted "
            f"{np.expm1(-forecast):+.1%}; one seed). The domains themselves: {others['proposal']:.4f} and "
            f"{others['uniform']:.4f} in the mean. The search cost {result.search_share:.0%} of one such training; its "
            f"advice was to {'move' if result.verdict.decision.action == 'move' else 'keep the uniform mixture'}."
        ),
    )
