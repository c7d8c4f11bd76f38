"""`opmix verify --full`: the whole model, trained as long as a probe, on the proposal and on the mixture in use."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from opmix.mixing.mixture import FloatArray
from opmix.mixing.paired import loss_difference_error, objective_error, objective_values
from opmix.mixture_search.reload import LoadedSearch


def full_check(found: LoadedSearch) -> dict[str, Any]:
    """Losses of short full trainings, and the proposal's gain with its paired error, nats.

    Levels say nothing of the law (it knows adapters); differences between mixtures do. In a continual stage the mixture in use lacks the
    new domain, so the proposal is held against the prior instead.
    """
    from opmix.probes.evaluation import Evaluation, evaluate
    from opmix.training.full import train_on_mixture

    context, verdict = found.context, found.proposal.verdict
    stage, session = context.problem, context.session
    rebalancing = found.design.coordinates.names == found.design.coordinates.domains
    prior = verdict.settings.prior
    against = stage.current if rebalancing or prior is None else prior.on(stage.domains)
    other = "current" if rebalancing or prior is None else "prior"
    arms = {"proposal": verdict.optimum.mixture, other: against}
    reached = found.simulated.fidelity.steps or session.settings.num_steps
    tokens = round(session.probe_tokens * reached / session.settings.num_steps)
    evaluations: list[Evaluation] = []
    for name, mixture in arms.items():
        model = copy.deepcopy(session.runtime.model)
        train_on_mixture(
            model,
            session.runtime.rows,
            mixture,
            tokens=tokens,
            arguments=dict(session.trainer),
            seed=context.config.seed,
            output_dir=context.store.folder / "trainer",
            progress=context.progress,
            name=f"full training on {name}",
            make_trainer=session.runtime.make_trainer,
            objective=session.runtime.objective,
        )
        evaluations.append(evaluate(model, session.held_out, batch_tokens=session.evaluator.batch_tokens))
    first, second = evaluations
    both = Evaluation(
        first.names,
        tuple(_stacked(a, b) for a, b in zip(first.nll, second.nll, strict=True)),
        first.tokens,
        first.num_bytes,
    )
    values = objective_values(both.losses, verdict.settings)
    law = objective_values(
        found.proposal.fit.law.predict(_stacked(arms["proposal"].weights[None], against.weights[None])),
        verdict.settings,
    )
    return {
        "tokens": tokens,
        "against": other,
        "losses": {
            n: dict(zip(both.names, map(float, row), strict=True)) for n, row in zip(arms, both.losses, strict=True)
        },
        "gain": float(values[1] - values[0]),
        "standard_error": objective_error(loss_difference_error(both.nll, both.tokens, 0, 1), verdict.settings),
        "law_gain": float(law[1] - law[0]),
    }


def _stacked(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.concatenate([a, b])
