"""Every method there is: one row each. Imports none of them, so that listing is quick.

To add one: a file with a frozen dataclass whose fields are its settings, a row here, and an entry in docs/methods.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from opmix.errors import ConfigError
from opmix.settings.loading import nearest

Family = Literal["fixed", "searched", "online", "continual"]
Training = Literal["plain", "online", "continual", "merged", "restarted"]
"""How a stage is trained: on a fixed mixture (from the first model again: `restarted`), on one that moves, by a learner of its own
(`opmix.continual`), or not at all: the adapters of the search are merged."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method, as `opmix methods` lists it."""

    name: str
    title: str
    family: Family
    """`fixed`: a rule; `searched`: decided before the run; `online`: decided during it; `continual`: another way to train."""
    path: str
    """`module:Class`."""
    line: str
    """What it does, in one line."""
    paper: str = ""
    """arXiv number or address."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the class, different from its own defaults."""
    stage: Mapping[str, Any] = field(default_factory=dict)
    """Of a lifecycle's stage, changed for this method (such as `{"objective": "sdft"}`)."""
    training: Training = "plain"
    untargeted: str = ""
    """Why it cannot serve targets, where it cannot."""
    own_search: bool = False
    """Whether `opmix search` decides, so that its settings are those of the configuration."""

    def load(self) -> type:
        """The class."""
        module, _, name = self.path.partition(":")
        kind: type = getattr(importlib.import_module(module), name)
        return kind

    def make(self, settings: Mapping[str, Any] | None = None) -> Any:
        """The method with some of its settings changed.

        Raises:
            ConfigError: It has no such setting, or not with such a value.
        """
        kind, given = self.load(), {**self.settings, **(settings or {})}
        known = [f.name for f in fields(kind) if f.init]
        if unknown := [n for n in given if n not in known]:
            raise ConfigError(
                [f"{self.name}.{n}: no such setting{nearest(n, known) if known else '; it has none'}" for n in unknown]
            )
        try:
            return kind(**given)
        except ConfigError as error:
            raise ConfigError([f"{self.name}.{problem}" for problem in error.problems]) from error


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="op_mix",
        title="OP-Mix",
        family="searched",
        path="opmix.methods.op_mix:OpMix",
        paper="2605.15220",
        line="one LoRA probe per domain, interpolated; a law fitted to what is simulated; a convex solve",
        own_search=True,
    ),
    Entry(
        name="uniform",
        title="Uniform",
        family="fixed",
        path="opmix.methods.fixed:Uniform",
        line="the same share of every domain (ERM without mixing)",
    ),
    Entry(
        name="size",
        title="Size",
        family="fixed",
        path="opmix.methods.fixed:Size",
        line="shares proportional to the tokens that are there",
    ),
    Entry(
        name="temperature",
        title="Temperature",
        family="fixed",
        path="opmix.methods.fixed:Temperature",
        paper="1907.05019",
        line="shares proportional to size to the power 1 / T",
    ),
    Entry(
        name="unimax",
        title="UniMax",
        family="fixed",
        path="opmix.methods.fixed:UniMax",
        paper="2304.09151",
        line="uniform, but no domain is read more than so many times",
    ),
    Entry(
        name="replay",
        title="Replay",
        family="fixed",
        path="opmix.methods.fixed:Replay",
        paper="2403.08763",
        line="a fixed share of the old mixture, a tenth unless told, the rest uniform over the new domains",
    ),
    Entry(
        name="sequential",
        title="Sequential",
        family="fixed",
        path="opmix.methods.fixed:Sequential",
        line="only the new domains (continual fine-tuning)",
    ),
    Entry(
        name="full_retraining",
        title="Full retraining",
        family="fixed",
        training="restarted",
        path="opmix.methods.retraining:FullRetraining",
        line="from the start again, on all domains, for the tokens of all stages so far",
    ),
    Entry(
        name="lora_merge",
        title="LoRA merge",
        family="searched",
        training="merged",
        path="opmix.methods.op_mix:OpMix",
        paper="2605.15220",
        line="OP-Mix's search, then its adapters are merged and nothing is trained",
        own_search=True,
    ),
    Entry(
        name="regmix",
        title="RegMix",
        family="searched",
        path="opmix.methods.swarm.regmix:RegMix",
        paper="2407.01492",
        line="a swarm of small models, boosted trees, the mean of the mixtures predicted best",
    ),
    Entry(
        name="olmix",
        title="Olmix",
        family="searched",
        path="opmix.methods.swarm.olmix:Olmix",
        paper="2602.12237",
        line="a swarm of small models, log-linear laws, a convex solve; old ratios are kept where domains are new",
    ),
    Entry(
        name="data_mixing_laws",
        title="Data Mixing Laws",
        family="searched",
        paper="2403.16952",
        path="opmix.methods.swarm.data_mixing_laws:DataMixingLaws",
        line="short runs on halving shares, exponential laws of the mixture, their minimum",
    ),
    Entry(
        name="merge_mix",
        title="MergeMix",
        family="searched",
        path="opmix.methods.swarm.merge_mix:MergeMix",
        paper="2601.17858",
        line="an expert per domain, trained in full; weight averages stand for mixtures; a law, its minimum",
    ),
    Entry(
        name="merge_to_mix",
        title="Merge to Mix",
        family="searched",
        paper="2505.16066",
        path="opmix.methods.swarm.merge_to_mix:MergeToMix",
        line="a model per domain; the subset whose uniform average is best is what to train on",
    ),
    Entry(
        name="mixmin",
        title="MixMin",
        family="searched",
        path="opmix.methods.ensemble:Ensemble",
        paper="2502.10510",
        settings={"pooled": True},
        line="a probe per domain; the shares at which their predictions, mixed, fit all held-out tokens best",
    ),
    Entry(
        name="mde",
        title="MDE",
        family="searched",
        path="opmix.methods.ensemble:Ensemble",
        paper="2502.15950",
        line="the same, each evaluation set's mean loss counting alike: mixtures of data experts",
    ),
    Entry(
        name="climb",
        title="CLIMB",
        family="searched",
        path="opmix.methods.swarm.climb:Climb",
        paper="2504.13161",
        line="train some mixtures, predict many, train some of the best predicted, and again",
    ),
    Entry(
        name="doremi",
        title="DoReMi",
        family="searched",
        path="opmix.methods.online.doremi:DoReMi",
        paper="2305.10429",
        line="a proxy run by group DRO on the excess over a reference model; the average of its mixtures",
    ),
    Entry(
        name="doge",
        title="DoGE",
        family="searched",
        path="opmix.methods.online.doge:Doge",
        paper="2310.15393",
        line="a proxy run that follows domains whose gradients serve all held-out losses; the average of its mixtures",
    ),
    Entry(
        name="odm",
        title="ODM",
        family="online",
        training="online",
        path="opmix.methods.online.odm:Odm",
        paper="2312.02406",
        line="an EXP3 bandit over domains, rewarded by their training losses",
    ),
    Entry(
        name="ado",
        title="ADO",
        family="online",
        training="online",
        path="opmix.methods.online.ado:Ado",
        paper="2410.11820",
        line="scaling laws per domain fitted while training; more of what is learned fastest",
    ),
    Entry(
        name="skill_it",
        title="Skill-It",
        family="online",
        training="online",
        path="opmix.methods.online.skill_it:SkillIt",
        paper="2307.14430",
        line="a graph of which domain helps which, then multiplicative weights on held-out losses",
        untargeted="its graph is of domains with each other, learned from trials on the domains' own held-out sets",
    ),
    Entry(
        name="aioli",
        title="Aioli",
        family="online",
        training="online",
        path="opmix.methods.online.aioli:Aioli",
        paper="2411.05735",
        line="how mixtures move losses is measured by short sweeps in the run; exponentiated gradient",
    ),
    Entry(
        name="grape",
        title="GRAPE",
        family="online",
        training="online",
        path="opmix.methods.online.grape:Grape",
        paper="2505.20380",
        line="domains weighted by gradient alignment with the tasks that improve least",
    ),
    Entry(
        name="tikmix",
        title="TiKMiX",
        family="online",
        training="online",
        path="opmix.methods.online.tikmix:Tikmix",
        paper="2508.17677",
        line="a few times in a run, the mixture of greatest balanced influence on held-out losses (first-order)",
    ),
    Entry(
        name="ewc",
        title="EWC",
        family="continual",
        training="continual",
        path="opmix.continual.ewc:Ewc",
        paper="1612.00796",
        line="new domains only; a penalty holds the weights that old data depend on (online EWC, 1805.06370)",
    ),
    Entry(
        name="a_gem",
        title="A-GEM",
        family="continual",
        training="continual",
        path="opmix.continual.a_gem:AGem",
        paper="1812.00420",
        line="new domains only; no step may raise the mean loss on remembered rows",
    ),
    Entry(
        name="gem",
        title="GEM",
        family="continual",
        training="continual",
        path="opmix.continual.gem:Gem",
        paper="1706.08840",
        line="new domains only; no step may raise the loss on any old domain's remembered rows",
    ),
    Entry(
        name="o_lora",
        title="O-LoRA",
        family="continual",
        training="continual",
        path="opmix.continual.o_lora:OLora",
        paper="2310.14152",
        line="new domains only; a LoRA a stage, orthogonal to those before, merged at its end",
    ),
    Entry(
        name="sdft",
        title="SDFT",
        family="continual",
        path="opmix.methods.fixed:Sequential",
        paper="2601.19897",
        line="new domains only; the model teaches itself, shown a demonstration (conversations only)",
        stage={"objective": "sdft"},
    ),
    Entry(
        name="on_policy_distillation",
        title="On-policy distillation",
        family="continual",
        path="opmix.methods.fixed:Sequential",
        line="new domains only; another model teaches: stage: {sdft: {teacher_model: ...}} (conversations only)",
        stage={"objective": "sdft"},
        paper="2306.13649",
    ),
)


METHODS: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}


def entry_of(name: str) -> Entry:
    """The method of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in METHODS:
        raise ConfigError(f"method: {name!r} is unknown{nearest(name, list(METHODS))}; `opmix methods` lists them")
    return METHODS[name]
