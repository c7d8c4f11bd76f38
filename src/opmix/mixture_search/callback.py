"""`RemixCallback`: decide the mixture again in the middle of somebody's own training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from opmix.config import SearchConfig, parse_config
from opmix.data import MixtureStream, TokenizedDomain
from opmix.data.overlap import token_overlaps
from opmix.domain import ChatOptions
from opmix.errors import ConfigError, StoreError
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.search import SearchResult, run_search
from opmix.probes.preserve_state import preserve_model_state
from opmix.progress import Progress, Silent
from opmix.runs.files import default_cache_dir, json_of, plain, write_json
from opmix.runs.ranks import refuse_ranks
from opmix.runs.run_folder import local_folder
from opmix.scores.task_questions import without_tasks
from opmix.settings import Count, settings
from opmix.settings.loading import validated
from opmix.training.factory import TrainerFactory
from opmix.training.objectives import CAUSAL_LM
from opmix.training.stage_data import StageData, prepare_targets

_FOR_PROBES = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "optim_args",
    "bf16",
    "fp16",
    "bf16_full_eval",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "label_smoothing_factor",
    "use_cpu",
    "neftune_noise_alpha",
)
"""What probes take over from the run they interrupt."""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One decision made on the way."""

    step: int
    index: int
    """First sequence of the new mixture: those that the data loader holds already are trained on as they are."""
    mixture: dict[str, float]
    action: str
    reason: str


@settings
class _When:
    """At which token counts a run is interrupted."""

    at: list[Count]
    every: Count | None


class RemixCallback(TrainerCallback):
    """Probes the live model at given token counts and switches the running stream to the mixture it proposes.

    Model, optimiser, schedule and random generators are as before when training goes on; only what the data loader has not read yet
    changes. Resuming the Trainer from a checkpoint takes the decisions up to it from `out`.

        stream = MixtureStream.open({"web": "web/*.jsonl", "code": "code/*.jsonl"}, tokenizer, {"web": 0.8, "code": 0.2}, ...)
        remix = RemixCallback(stream, at=[50_000_000], out="runs/remix", probes={"steps": 200})
        Trainer(model=model, args=args, train_dataset=stream, callbacks=[remix]).train()

    Args:
        stream: The Trainer's `train_dataset`; the Trainer must read in order (`train_sampling_strategy="sequential"`).
        at: Token counts of the run at which to decide.
        every: Or: tokens between decisions.
        out: Folder of the decisions, each with a report of its own.
        make_trainer: Replaces `opmix.training.factory.default_trainer` for the probes.
        progress: Shows what is going on; None: silence.
        **settings: Keys of `search.yaml`: targets, probes, proxies, solve, decision, huber_delta, new_domains. Relative paths of
            targets start from the working folder.

    Raises:
        ConfigError: Settings that cannot hold, or a Trainer that does not read in order.
        DataError: A target cannot be read.
    """

    def __init__(
        self,
        stream: MixtureStream,
        *,
        at: Sequence[int] = (),
        every: int | None = None,
        out: str | Path,
        make_trainer: TrainerFactory | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> None:
        when = validated(_When, {"at": plain(at), "every": plain(every)}, where="RemixCallback")
        if bool(when.at) == (when.every is not None):
            raise ConfigError("RemixCallback: expected either at=[tokens, ...] or every=tokens")
        if not isinstance(stream, MixtureStream):
            raise ConfigError(
                f"RemixCallback: the stream is a {type(stream).__name__}; expected a MixtureStream (a trainer "
                "that wants a datasets.Dataset is given stream.as_dataset(), and this the stream itself)"
            )
        self.stream, self.at, self.every = stream, tuple(sorted(when.at)), when.every
        self.out = local_folder(out)
        self.make_trainer, self.progress, self.settings = make_trainer, progress, settings
        self.switches: list[Switch] = []
        self.results: list[SearchResult] = []
        self._targets = self._prepared(self._config(1, {}))  # complain now, not in the middle of a run
        self._shared = tuple(map(str, token_overlaps(stream.data, self._targets[0], stream.tokenizer)))
        for sentence in self._shared:
            (progress or Silent()).note(sentence)

    # -- what the Trainer calls ---------------------------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Check what must hold, and take over the decisions of a run that is resumed."""
        if args.train_sampling_strategy != "sequential":
            raise ConfigError(
                f"train_sampling_strategy: {args.train_sampling_strategy!r}; RemixCallback needs 'sequential', the "
                "stream is the order"
            )
        refuse_ranks("RemixCallback", "search from a saved checkpoint with `opmix search` instead")
        rows = self._rows_per_step(args)
        needed = state.max_steps * rows
        if len(self.stream) != needed:
            raise ConfigError(
                f"the stream has {len(self.stream)} sequences; expected {needed}: {state.max_steps} steps of {rows}"
            )
        if state.global_step:
            self._take_over(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Decide where it is time to."""
        rows = self._rows_per_step(args)
        due = self._due(rows * self.stream.sequence_length, state.max_steps)
        if state.global_step not in due:
            return
        index = self._first_unread(args, state.global_step)
        later = [step for step in due if step > state.global_step]
        stop = min(later[0] * rows if later else len(self.stream), len(self.stream))
        if index >= stop:
            return  # nothing of this stretch is left to decide about
        model = getattr(kwargs["model"], "_orig_mod", kwargs["model"])
        config = self._config((stop - index) * self.stream.sequence_length, _taken_over(args))
        with preserve_model_state(model):
            result = run_search(
                config,
                model=model,
                tokenizer=self.stream.tokenizer,
                data=self._data(),
                out=self.out / f"step-{state.global_step}",
                make_trainer=self.make_trainer,
                progress=self.progress,
            )
        self.results.append(result)
        decision = result.verdict.decision
        made = Switch(
            step=state.global_step,
            index=index,
            mixture=dict(result.mixture),
            action=decision.action,
            reason=decision.reason,
        )
        self.stream.switch(index, result.mixture)
        self.switches.append(made)
        write_json(self.out / "switches.json", {"switches": [vars(switch) for switch in self.switches]})

    # -- how ----------------------------------------------------------------------------------------------------

    def _config(self, budget: int, trainer: dict[str, Any]) -> SearchConfig:
        shares = {n: s for n, s in self.stream.mixture.items() if s > 0}
        domains = {
            n: {"train": "<the stream>", "kind": "text", "max_epochs": self.stream.max_epochs.get(n)}
            for n in self.stream.data
        }
        return parse_config(
            {
                "model": "<the live model>",
                "domains": domains,
                "old_mixture": dict(Mixture.normalised(shares)),
                "budget": {"tokens": budget},
                "sequence_length": self.stream.sequence_length,
                "document_mask": self.stream.document_mask,
                "trainer": trainer,
                "seed": self.stream.seed,
                **self.settings,
            },
            where="RemixCallback",
        )

    def _prepared(self, config: SearchConfig) -> tuple[dict[str, TokenizedDomain], dict[str, ChatOptions]]:
        """The targets, tokenised, and the options of those that are conversations."""
        base, cache = Path.cwd(), Path(config.cache_dir) if config.cache_dir else default_cache_dir()
        targets = {n: t.domain(n, base) for n, t in without_tasks(config.targets, base, cache).items()}
        return prepare_targets(
            targets,
            self.stream.tokenizer,
            cache_dir=cache,
            num_proc=config.num_proc,
            progress=self.progress or Silent(),
        )

    def _data(self) -> StageData:
        targets, options = self._targets
        return StageData(
            domains=self.stream.data,
            options=options,
            sequence_length=self.stream.sequence_length,
            objective=CAUSAL_LM,
            targets=targets,
            shared=self._shared,
        )

    def _rows_per_step(self, args: TrainingArguments) -> int:
        return int(args.train_batch_size * args.gradient_accumulation_steps)

    def _due(self, step_tokens: int, max_steps: int) -> list[int]:
        """Steps after which to decide."""
        counts = self.at if self.every is None else range(self.every, max_steps * step_tokens, self.every)
        steps = {max(1, round(tokens / step_tokens)) for tokens in counts}
        return sorted(step for step in steps if step < max_steps)

    def _first_unread(self, args: TrainingArguments, step: int) -> int:
        """First sequence, at the beginning of a step, that no data loader can have read in advance.

        accelerate holds one batch ahead of the one it hands out, and every worker `prefetch_factor` batches more.
        """
        ahead = 1 + args.dataloader_num_workers * (
            args.dataloader_prefetch_factor or 2 if args.dataloader_num_workers else 0
        )
        rows = self._rows_per_step(args)
        read = step * rows + ahead * args.train_batch_size
        return -(-read // rows) * rows

    def _take_over(self, step: int) -> None:
        try:
            known = json_of(self.out / "switches.json")["switches"]
            found = [Switch(**entry) for entry in known]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{self.out}/switches.json: damaged ({error}); put it back, or train again from the start"
            ) from error
        self.switches = [switch for switch in found if switch.step <= step]
        for switch in self.switches:
            self.stream.switch(switch.index, switch.mixture, check=False)


def _taken_over(args: TrainingArguments) -> dict[str, Any]:
    """Arguments of the live run that its probes share, where they are not the defaults."""
    known = {f.name: f for f in fields(TrainingArguments)}
    values = {name: getattr(args, name) for name in _FOR_PROBES if name in known}
    kept = {n: v for n, v in values.items() if v is not None and v != known[n].default}
    kept["per_device_train_batch_size"] = args.train_batch_size
    return {**kept, "learning_rate": args.learning_rate}
