"""`lifecycle.yaml`: every sentence that refuses one, and what overrides reach."""

import pytest
import yaml
from lives import content, stage

from opmix.errors import ConfigError
from opmix.lifecycle.config import OWNED, TokenizerConfig
from opmix.lifecycle.loading import load_lifecycle


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "life.yaml"
    first, second = stage("one", 100, domains=["alpha", "beta"]), stage("two", 50, add=["gamma"])
    file.write_text(yaml.safe_dump(content(first, second)))
    return lambda *overrides: load_lifecycle(file, overrides)


def test_overrides_reach_into_stages(load):
    config = load("stages.0.tokens=2e6", "stages.1.probes.steps=7", "keep.models=last", "tokenizer=some/folder")
    assert (config.stages[0].tokens, config.stages[1].probes) == (2_000_000, {"steps": 7})
    assert config.keep.models == "last"
    assert config.tokenizer == TokenizerConfig(name="some/folder")
    with pytest.raises(ConfigError, match=r"'2' is no item of a list of 2; expected 0 to 1"):
        load("stages.2.tokens=5")
    with pytest.raises(ConfigError, match="'first' is no item of a list"):
        load("stages.first.tokens=5")


FROM_MODEL = ("architecture=null", "model=some/folder")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # where the life starts
        (["architecture=null"], "model: expected either model (a checkpoint) or architecture"),
        (["model=some/folder"], "model: expected either model (a checkpoint) or architecture"),
        (["tokenizer=null"], "tokenizer: missing; a model from scratch needs one"),
        (["tokenizer={}"], "tokenizer: expected either name (a saved one) or vocab_size"),
        (["tokenizer={name: a, vocab_size: 300}"], "tokenizer: expected either name (a saved one) or vocab_size"),
        (["old_mixture={alpha: 1}"], "old_mixture: a model from scratch has seen nothing"),
        ([*FROM_MODEL, "old_mixture={alpha: 0.4}"], "old_mixture: "),
        ([*FROM_MODEL, "old_mixture={alpa: 1}"], "old_mixture.alpa: unknown domain; did you mean 'alpha'?"),
        (["seeds=[0, 0]"], "seeds: [0, 0]; expected different whole numbers >= 0"),
        (["seeds=[]"], "seeds: []; expected different whole numbers >= 0"),
        (["seeds=[-1]"], "seeds: [-1]; expected different whole numbers >= 0"),
        (["stages.1.trainer.eval_steps=5"], "stages.1.trainer.eval_steps: use evaluation.every; remove it"),
        # names
        (["stages.1.name=one"], "stages.1.name: 'one' is taken by stage 0; give each its own"),
        (["stages.1.name=a/b"], "stages.1.name: "),
        (["stages.0.domains=[alpha, beat]"], "stages.0.domains.beat: unknown domain; did you mean 'beta'?"),
        (["stages.1.add=[gama]"], "stages.1.add.gama: unknown domain; did you mean 'gamma'?"),
        (["stages.1.drop=[alhpa]"], "stages.1.drop.alhpa: unknown domain; did you mean 'alpha'?"),
        (["stages.0.mixture={alpha: 0.5, betta: 0.5}"], "stages.0.mixture.betta: unknown domain; did you mean 'beta'?"),
        (["stages.0.prefix_mixture={alpah: 1}"], "stages.0.prefix_mixture.alpah: unknown domain"),
        (["stages.1.drop=[delta]"], "stages.1.drop.delta: is not on offer; expected one of ['alpha', 'beta']"),
        (["stages.0.solve.floors={gamma: 0.1}"], "stages.0.solve.floors.gamma: unknown domain"),
        # what a stage can be
        (["stages.0.domains=[]"], "stages.0.domains: none on offer; name at least one in domains or add"),
        (["stages.0.domains=[alpha]"], "stages.0.domains: ['alpha']; a search needs at least two"),
        (["stages.0.mixture={alpha: 0.5, gamma: 0.5}"], "stages.0.mixture: "),
        (["stages.0.mixture={alpha: 0.5, beta: 0.4}"], "stages.0.mixture: "),
        (["stages.0.prefix_mixture={gamma: 1}"], "stages.0.prefix_mixture: "),
        (["stages.0.mixture=current"], "stages.0.mixture: 'current' needs an old mixture"),
        (["stages.0.optimizer=continued"], "stages.0.optimizer: 'continued' needs a stage before; use fresh"),
        (["stages.0.mixture=uniform", "stages.0.prefix=0.1"], "stages.0.prefix: has no meaning with a fixed mixture"),
        (["stages.0.mixture=size", "stages.0.remix_every=999"], "stages.0.remix_every: has no meaning with a fixed"),
        (["stages.0.prefix=0.999"], "stages.0.prefix: 0.999; of 100 steps that leaves none before or after it"),
        (["stages.0.prefix=0.001"], "stages.0.prefix: 0.001; of 100 steps that leaves none before or after it"),
        # unknown keys and wrong values, at every depth
        (["stages.0.tokns=1"], "stages.0.tokns: unknown key; did you mean 'tokens'?"),
        (["stages.0.probes.stepz=1"], "stages.0.probes.stepz: unknown key; did you mean 'steps'?"),
        (["probes.stepz=1"], "probes.stepz: unknown key; did you mean 'steps'?"),
        (["proxies.gradients=true"], "proxies.gradients: removed in 0.1.0"),
        (["proxies.specialised=true"], "proxies.specialised: removed in 0.1.0"),
        (["decision.arbiter=true"], "decision.arbiter: removed in 0.1.0"),
        (["stages.0.proxies.gradients=true"], "stages.0.proxies.gradients: removed in 0.1.0"),
        (["evaluation.evry=1"], "evaluation.evry: unknown key; did you mean 'every'?"),
        (["schedule.kind=wds"], "schedule.kind: "),
        (["stages.0.tokens=-5"], "stages.0.tokens: Input should be greater than 0 (got -5)"),
        (["stages.0.prefix=1"], "stages.0.prefix: Input should be less than 1 (got 1)"),
        (["stages=[]"], "stages: "),
    ],
)
def test_refused(load, overrides, message):
    with pytest.raises(ConfigError) as error:
        load(*overrides)
    assert message in str(error.value)
    assert "life.yaml" in str(error.value)


@pytest.mark.parametrize("name", OWNED)
def test_arguments_that_the_life_decides(load, name):
    with pytest.raises(ConfigError, match=rf"trainer\.{name}: {OWNED[name].split()[0]}"):
        load(f"trainer.{name}=1")


def test_all_problems_at_once(load):
    with pytest.raises(ConfigError) as error:
        load("stages.0.mixture=current", "stages.1.drop=[delta]", "stages.1.name=one")
    assert len(error.value.problems) == 3
    with pytest.raises(ConfigError) as error:
        load("architecture=null", "seeds=[]", "trainer.save_steps=1")
    assert len(error.value.problems) == 3


def test_life_wide_settings_of_absent_domains_are_left_out(load):
    config = load(
        "solve.floors={gamma: 0.1, alpha: 0.2}",
        "solve.prior={alpha: 0.5, beta: 0.3, gamma: 0.2}",
        "solve.groups={g: {domains: [gamma], floor: 0.1}, h: {domains: [beta, gamma], ceiling: 0.9}}",
    )
    solve = config.settings_of(config.stages[0], ("alpha", "beta")).solve
    assert solve.floors == {"alpha": 0.2}
    assert solve.prior == {"alpha": 0.5, "beta": 0.3}
    assert {n: g.domains for n, g in solve.groups.items()} == {"h": ("beta",)}
