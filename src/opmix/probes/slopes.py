"""Value-and-slope proxies: one forward and one backward pass give a loss and its slope along every probe.

The backward pass goes through activations only: base weights need no gradient and delta weights are never formed (`taps`). A point
with slopes costs two plain passes and carries P + 1 numbers instead of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import nn

from opmix.errors import TrainingError
from opmix.mixing.mixture import FloatArray, InterpolationWeights
from opmix.models import base_model_of
from opmix.probes.adapters import DeltaSet
from opmix.probes.evaluation import WHOLE_LOGITS, Evaluation, HeldOut, batches, device_of, evaluate_proxies
from opmix.probes.interpolation import Proxies
from opmix.probes.taps import FlattenedTokensError, Taps
from opmix.probes.token_losses import Batch, evaluating, logits_in_chunks, scored_states, separate_head


@dataclass(frozen=True)
class SlopeEvaluation:
    """Losses and slopes of M proxies of P probes on E evaluation sets, with every sequence kept.

    Attributes:
        names: E names.
        probes: P names.
        nll: Per evaluation set, summed nats of each sequence, (M, S_e).
        slopes: Per evaluation set, `d nll / d w_k`, (M, S_e, P).
        tokens: Per evaluation set, scored tokens, (S_e,).
    """

    names: tuple[str, ...]
    probes: tuple[str, ...]
    nll: tuple[FloatArray, ...]
    slopes: tuple[FloatArray, ...]
    tokens: tuple[FloatArray, ...]

    @property
    def losses(self) -> FloatArray:
        """Nats per token, (M, E)."""
        return np.stack([n.sum(axis=1) / t.sum() for n, t in zip(self.nll, self.tokens, strict=True)], axis=1)

    @property
    def gradients(self) -> FloatArray:
        """`d loss / d w`, nats per token and unit of weight, (M, E, P)."""
        return np.stack([s.sum(axis=1) / t.sum() for s, t in zip(self.slopes, self.tokens, strict=True)], axis=1)


def evaluate_slopes(
    proxies: Proxies,
    deltas: DeltaSet,
    points: Sequence[InterpolationWeights],
    held_out: Sequence[HeldOut],
    *,
    batch_tokens: int = 8192,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SlopeEvaluation:
    """Losses and slopes at every point, on either back end.

    Args:
        proxies: The simulated models.
        deltas: Delta weights of the same probes in the same order.
        points: Where.
        held_out: The evaluation sets.
        batch_tokens: Tokens per pass; mixtures of experts and modules trained in full take one sequence a pass.
        dtype: As in `evaluate`.
        progress: Told after every point.

    Raises:
        TrainingError: A loss or slope is NaN or infinite.
    """
    found: list[list[tuple[FloatArray, FloatArray]]] = []
    with proxies.sweep(points) as models:
        for weights, model in zip(points, models, strict=True):
            found.append(_at(model, deltas, held_out, batch_tokens, dtype))
            for held, (nll, slopes) in zip(held_out, found[-1], strict=True):
                if not (np.isfinite(nll).all() and np.isfinite(slopes).all()):
                    raise TrainingError(
                        f"loss or slope of {weights!r} on {held.name!r} is not finite; expected numbers: the model or a probe "
                        "diverged, so lower the learning rate"
                    )
            if progress is not None:
                progress(len(found), len(points))
    columns = list(zip(*found, strict=True))
    return SlopeEvaluation(
        names=tuple(held.name for held in held_out),
        probes=deltas.probes,
        nll=tuple(np.stack([nll for nll, _ in column]) for column in columns),
        slopes=tuple(np.stack([slopes for _, slopes in column]) for column in columns),
        tokens=tuple(held.tokens for held in held_out),
    )


def evaluate_mixed(
    proxies: Proxies,
    deltas: DeltaSet | None,
    points: Sequence[InterpolationWeights],
    with_slopes: Sequence[int],
    held_out: Sequence[HeldOut],
    *,
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, SlopeEvaluation | None]:
    """Losses at every point, and slopes at those numbered in `with_slopes`, each point passed through once."""
    plain = [i for i in range(len(points)) if i not in set(with_slopes)]
    total = len(points)
    told = None if progress is None else lambda done, _: progress(done, total)
    rest = None if progress is None else lambda done, _: progress(len(plain) + done, total)
    steep = None
    if deltas is not None and len(with_slopes):
        chosen = [points[i] for i in with_slopes]
        steep = evaluate_slopes(proxies, deltas, chosen, held_out, batch_tokens=batch_tokens, progress=rest)
    swept = None
    if plain:
        swept = evaluate_proxies(
            proxies, [points[i] for i in plain], held_out, batch_tokens=batch_tokens, progress=told
        )
    nll = []
    for e, held in enumerate(held_out):
        rows = np.zeros((total, len(held.input_ids)))
        if swept is not None:
            rows[plain] = swept.nll[e]
        if steep is not None:
            rows[list(with_slopes)] = steep.nll[e]
        nll.append(rows)
    names, tokens = tuple(h.name for h in held_out), tuple(h.tokens for h in held_out)
    return Evaluation(
        names, tuple(nll), tokens, tuple(np.asarray(h.num_bytes, dtype=np.float64) for h in held_out)
    ), steep


def _at(
    model: nn.Module, deltas: DeltaSet, held_out: Sequence[HeldOut], batch_tokens: int, dtype: torch.dtype | None
) -> list[tuple[FloatArray, FloatArray]]:
    """Per evaluation set: nats (S,) and slopes (S, P) of each sequence at the model as it is now."""
    device = device_of(model)
    with _frozen(model), evaluating(model, dtype, gradients=True):
        taps = Taps(model, deltas)
        with torch.no_grad():
            head = separate_head(model, torch.as_tensor(held_out[0].input_ids[:1, :16], device=device))
        limit = batch_tokens if taps.by_sequence else 1
        if head is None:  # logits and their gradient exist at once
            limit = min(limit, WHOLE_LOGITS // 2 // int(base_model_of(model).get_input_embeddings().weight.shape[0]))
        with taps.hooked():
            try:
                return [_one_set(model, head, taps, held, limit, device) for held in held_out]
            except FlattenedTokensError:
                return [_one_set(model, head, taps, held, 1, device) for held in held_out]


def _one_set(
    model: nn.Module, head: nn.Module | None, taps: Taps, held: HeldOut, limit: int, device: torch.device
) -> tuple[FloatArray, FloatArray]:
    nll, slopes = [], []
    for batch in batches(held, limit, device):
        taps.open(batch.shape[0], device)
        nll.append(_backward(model, head, batch))
        slopes.append(taps.slopes())
    return (
        torch.cat(nll).cpu().numpy().astype(np.float64),
        torch.cat(slopes).cpu().numpy().astype(np.float64),
    )


def _backward(model: nn.Module, head: nn.Module | None, batch: Batch) -> torch.Tensor:
    """Summed nats of each sequence (b,); the logits of one chunk exist at a time, in both directions."""
    states = scored_states(model, head, batch)
    leaf = states.detach().requires_grad_(True)
    tokens = torch.zeros(batch.shape.numel(), device=states.device)
    positions, targets = batch.positions.to(states.device), batch.targets.to(states.device)
    for part, logits in logits_in_chunks(head, leaf):
        losses = F.cross_entropy(logits, targets[part], reduction="none")
        losses.sum().backward()
        tokens[positions[part]] = losses.detach()
    if states.requires_grad and leaf.grad is not None:
        states.backward(leaf.grad)
    return tokens.view(batch.shape).sum(dim=1)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter is differentiated, flags back as they were afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
