"""Settings of probes and of the proxies made of them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from opmix.settings import Bounds, Count, NotNegative, ReadAs, changed, number, settings

ProbeKindName = Literal["lora", "lora+embeddings", "full"]
"""What a probe trains: adapters; adapters and the embeddings (the output head too); everything that the model lets be trained."""

_RATES = {"lora": 2.0, "lora+embeddings": 2.0, "full": 1.0}
"""Times the trainer's learning rate where nothing is said (paper's code, for adapters: 2)."""

_LITTLE = 0.5
"""Share of the weights that probes reach; where it is less, the user is told."""

_OF_A_RUN = (
    "steps",
    "rank",
    "alpha",
    "dropout",
    "rslora",
    "target_modules",
    "modules_to_save",
    "learning_rate_multiplier",
)


CONFIRMING = 3
"""Probes that a decision on trained evidence compares: the mixture in use, the optimum, half-way between."""
SEARCH_SHARE = 0.08
"""Of the FLOPs of a stage that training its probes may cost where no number of steps is given; evaluating them comes on top."""
FEWEST_STEPS, MOST_STEPS = 8, 200
"""Of probes where no number is given. Shorter ones lose regret (benchmarks/evidence/probe_lengths.py); longer ones gained none."""


def affordable_steps(stage_steps: float, runs: int, kind: ProbeKindName) -> int:
    """Steps of each of `runs` probes that together cost `SEARCH_SHARE` of a stage.

    Examples:
        >>> affordable_steps(10_000, 9, "full"), affordable_steps(500, 9, "full"), affordable_steps(10**6, 9, "lora")
        (88, 8, 200)
    """
    price = 1.0 if kind == "full" else 5 / 6  # frozen weights need no gradient of their own
    return int(min(MOST_STEPS, max(FEWEST_STEPS, SEARCH_SHARE * stage_steps / (runs * price))))


@settings
class ProbeSettings:
    """How probes are trained; all of them for the same number of steps and tokens."""

    steps: Count | None = None
    """At most, with `adaptive`. None: 200 with the paper's law; with effective tokens as many as `affordable_steps` says."""
    adaptive: bool | None = None
    """Look at the probes while they train and stop where the predicted regret is below `tolerance`; None: where a domain is new."""
    tolerance: NotNegative = 0.05
    """Of the predicted regret and its change, as a share of what mixtures change at all (0: never stop)."""
    first_look: Count | None = None
    """Steps before the first look at least, each later one after twice as many; None: a sixteenth of `steps`."""
    share: Annotated[float, Bounds(gt=0, le=1)] = 0.9
    """Of a probe's own data in its training mixture (paper's code: 0.9); above 0.5 where domains are new."""
    joint: bool = True
    """In continual stages also train one probe on the centre, so that interference can be measured."""
    rank: Annotated[int, Bounds(gt=0, le=65_536), ReadAs(number)] = 16
    alpha: Annotated[float, Bounds(gt=0, le=65_536)] = 32.0
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    rslora: bool = False
    target_modules: tuple[str, ...] | None = None
    """None: every linear layer except the output head."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained in full beside the adapters (their deltas are linear too), such as embeddings."""
    learning_rate_multiplier: Annotated[float, Bounds(gt=0, le=1000)] | None = None
    """Times the trainer's learning rate; None: 2 for adapters (paper's code), 1 for full probes."""
    kind: ProbeKindName = "lora"
    """What a probe trains: adapters; adapters, the embeddings and the output head; or every weight, for as few steps."""

    at_once: Count = 1
    """Probes trained as one batch, at most (packed text, `lora`, one GPU or the CPU; else one by one, which is said)."""

    @property
    def num_steps(self) -> int:
        """Steps of a whole probe."""
        return MOST_STEPS if self.steps is None else self.steps

    @property
    def rate(self) -> float:
        """Times the trainer's learning rate."""
        return _RATES[self.kind] if self.learning_rate_multiplier is None else self.learning_rate_multiplier

    def settled(self, stage_steps: float, runs: int | None) -> ProbeSettings:
        """With `steps` known. `runs`: probes and candidates of a search that has to be cheap; None: it need not be."""
        if self.steps is not None:
            return self
        return changed(self, steps=MOST_STEPS if runs is None else affordable_steps(stage_steps, runs, self.kind))

    def of_a_run(self) -> dict[str, Any]:
        """What a trained probe depends on; the others choose which probes there are and when they are looked at."""
        depends = {name: getattr(self, name) for name in _OF_A_RUN}
        depends |= {"steps": self.num_steps, "learning_rate_multiplier": self.rate}
        return depends if self.kind == "lora" else {**depends, "kind": self.kind}


@settings
class ProxySettings:
    """Which interpolations are evaluated, and on how much text."""

    count: Count | None = None
    """None: 9 on a line for one new domain, else 2 x probes + 6."""
    eval_sequences: Count = 64
    """Held-out sequences per domain, the same for every proxy. Old domains that count as one share twice as many, so that a search
    does not grow with what the model already knows."""
    backend: Literal["auto", "merge", "scale"] = "auto"
    batch_tokens: Count = 8192


def reach_notes(share: float) -> list[str]:
    """What to know of probes that reach a `share` of the weights, see `models.reached_share`; nothing where it is most of them."""
    if share >= _LITTLE:
        return []
    return [
        f"the short trainings change {share:.0%} of the weights; what embeddings, output head and fused experts would "
        "learn is not foretold (`probes.modules_to_save` names modules that are to be trained in full)"
    ]
