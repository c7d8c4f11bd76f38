"""The laws' evidence: curves through the simulated points, predicted against simulated, who helps whom."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opmix.mixing.mixture import FloatArray
from opmix.mixing.table import ProxyTable
from opmix.report.figures import Curve, Points, agreement_panel, law_panel, profile_panel
from opmix.report.html import DASH, TIMES, Html, count, el, folded, join, number, percent, row, table
from opmix.report.model import Model
from opmix.report.opening import find, proposal_of, reference_name
from opmix.results.mixture import MixtureFile

MAX_PANELS = 12
HIGHLIGHTED = 3
MATRIX_LIMIT = 32
_GRID = 61


def columns(table_: ProxyTable, model: Model) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """The table's mixtures (M, D), losses (M, E) and errors (M, E) in the model's order; NaN where absent.

    Losses are brought to interference 0, where the law's predictions are made.
    """
    size = len(table_.points)

    def pick(block: FloatArray, have: tuple[str, ...], want: tuple[str, ...], absent: float) -> FloatArray:
        made = np.full((size, len(want)), absent)
        for i, name in enumerate(want):
            if name in have:
                made[:, i] = block[:, have.index(name)]
        return made

    errors, spread = table_.standard_errors, table_.interference
    moved = 0.0 if spread is None else np.outer(spread, model.gamma)
    known = None if errors is None else pick(errors, table_.metrics, model.metrics, np.nan)
    return (
        pick(table_.mixtures, table_.domains, model.domains, 0.0),
        pick(table_.losses, table_.metrics, model.metrics, np.nan) - moved,
        known if known is not None and np.isfinite(known).any() else None,
    )


def positions(mixtures: FloatArray, model: Model) -> FloatArray:
    """Coordinates (M, K) of mixtures (M, D); NaN rows for those that are off the coordinates."""
    found = [model.position(p) for p in mixtures]
    lost = np.full(len(model.coordinates), np.nan)
    return np.array([lost if x is None else x for x in found]).reshape(len(mixtures), len(model.coordinates))


def law_curves(document: MixtureFile, model: Model, proxies: ProxyTable | None) -> Html:
    """Curves with bands: along the line of a two-coordinate stage, else per coordinate from the reference."""
    if len(model.coordinates) == 2:
        return _line_section(document, model.at_points, proxies)
    return _profile_section(document, model, proxies)


def _line_section(document: MixtureFile, model: Model, proxies: ProxyTable | None) -> Html:
    new = model.coordinates[1]
    grid = np.linspace(0, 1, _GRID)
    mixtures = np.stack([1 - grid, grid], axis=1) @ model.A
    losses, band = model.predict(mixtures), model.band(mixtures)
    points = None if proxies is None else columns(proxies, model)
    x = None if points is None else positions(points[0], model)[:, 1]
    marks = []
    for name, shares in (
        ("proposal", proposal_of(document)),
        *_named(document, ("current", "uniform")),
    ):
        at = model.position(model.vector(shares))
        if at is not None and 0 < at[1] < 1:
            marks.append((float(at[1]), name))
    panels, shown = [], min(len(model.metrics), MAX_PANELS)
    for e, metric in enumerate(model.metrics[:shown]):
        low, high = (band[0][:, e], band[1][:, e]) if band else (None, None)
        curve = Curve(grid, losses[:, e], low, high)
        cloud = _cloud(x, points, e, None if proxies is None else proxies.left_out)
        label = (
            f"{metric}: predicted loss from {losses[0, e]:.3f} without {new} to {losses[-1, e]:.3f} with {new} alone"
        )
        art = law_panel(curve, cloud, marks, xlabel=f"share of {new}", label=label)
        panels.append(_figure(metric, art, _law_note(document, metric)))
    dots = 0 if x is None else int(np.isfinite(x).sum())
    shape = f"Line: the fitted law, dashed outside the simulated range{_band_words(model)}."
    errors = " with standard errors" if points is not None and points[2] is not None else ""
    words = (
        f"Each panel: one eval set's loss ({document.units}) against the share of {new}. {shape} "
        f"Dots: {dots} simulated points{errors}{_odd_words(proxies, model)}{_length_words(document)}."
    )
    return _section("curves", "Law curves", words, panels, _capped(shown, model), _curve_table(model, grid, losses))


def _named(document: MixtureFile, names: tuple[str, ...]) -> list[tuple[str, dict[str, float]]]:
    found = [(n, find(document, n)) for n in names]
    return [(n, dict(a.mixture)) for n, a in found if a is not None and a.mixture]


def _cloud(
    x: FloatArray | None,
    points: tuple[FloatArray, FloatArray, FloatArray | None] | None,
    e: int,
    odd: npt.NDArray[np.bool_] | None,
) -> Points | None:
    if x is None or points is None:
        return None
    _, losses, errors = points
    use = np.isfinite(x) & np.isfinite(losses[:, e])
    if not use.any():
        return None
    error = None if errors is None else np.nan_to_num(errors[use, e])
    return Points(x[use], losses[use, e], error, None if odd is None else odd[use])


def _odd_words(proxies: ProxyTable | None, model: Model) -> str:
    """What else there is to say about the points: hollow ones, and the correction."""
    if proxies is None:
        return ""
    left_out = int(proxies.left_out.sum())
    words = f"; hollow: {left_out} not used in the fit" if left_out else ""
    if proxies.interference is not None and np.any(np.outer(proxies.interference, model.gamma)):
        words += "; the law's interference term is taken off the points"
    return words


def _length_words(document: MixtureFile) -> str:
    """That probes are shorter than the stage, where the law knows of length."""
    tokens = (document.settings.fit or {}).get("tokens_of_probe")
    if tokens is None:
        return ""
    return f"; law and points at the length of the probes, {count(float(tokens))} tokens, looks before that left out"


def _profile_section(document: MixtureFile, model: Model, proxies: ProxyTable | None) -> Html:
    base, base_name = _base(document, model)
    reach = _reach(model, proxies, base)
    lines = [np.linspace(0, reach[k], _GRID // 2) for k in range(len(model.coordinates))]
    mixtures = [model.profile(base, k, line) for k, line in enumerate(lines)]
    losses = [model.predict(m) for m in mixtures]
    bands: dict[int, tuple[FloatArray, FloatArray] | None] = {}
    level = model.predict(base @ model.A)[0]
    panels, shown = [], min(len(model.metrics), MAX_PANELS)
    for e, metric in enumerate(model.metrics[:shown]):
        effect = np.array([loss[-1, e] - loss[0, e] for loss in losses])
        top = sorted(np.argsort(-np.abs(effect), kind="stable")[:HIGHLIGHTED].tolist())
        for k in top:
            if k not in bands:
                bands[k] = model.change_band(mixtures[k], base @ model.A)
        curves = []
        for k, name in enumerate(model.coordinates):
            band = bands.get(k) if k in top else None
            low, high = (band[0][:, e], band[1][:, e]) if band else (None, None)
            curves.append(Curve(lines[k], losses[k][:, e], low, high, name))
        words = ", ".join(f"{model.coordinates[k]} {number(float(effect[k]), sign=True)}" for k in top)
        art = profile_panel(curves, top, float(level[e]), xlabel="share of the domain", label=f"{metric}: {words} nats")
        panels.append(_figure(metric, art, _law_note(document, metric)))
    words = (
        f"Each panel: one eval set's predicted loss ({document.units}) as one domain's share changes and the others "
        f"keep the proportions of the {base_name} mixture; lines end at the largest simulated share. Named: the "
        f"{HIGHLIGHTED} strongest of {len(model.coordinates)}, blue where more of the domain lowers the loss, "
        f"orange where it raises it{_band_words(model, ' of the change')}."
    )
    return _section("curves", "Law curves", words, panels, _capped(shown, model), effect_matrix(model))


def _base(document: MixtureFile, model: Model) -> tuple[FloatArray, str]:
    name = reference_name(document)
    found = find(document, name)
    if name is not None and found is not None and found.mixture:
        x = model.position(model.vector(found.mixture))
        if x is not None:
            return x, name
    return np.full(len(model.coordinates), 1 / len(model.coordinates)), "uniform"


def _reach(model: Model, proxies: ProxyTable | None, base: FloatArray) -> FloatArray:
    """How far each coordinate was simulated, (K,); at least a little beyond the base mixture."""
    if proxies is None:
        return np.ones(len(model.coordinates))
    x = positions(columns(proxies, model)[0], model)
    x = x[np.isfinite(x).all(axis=1)]
    if not len(x):
        return np.ones(len(model.coordinates))
    return np.clip(x.max(axis=0), np.minimum(1.0, base * 1.2 + 0.02), 1.0)


def agreement(document: MixtureFile, model: Model, proxies: ProxyTable) -> Html | None:
    """Predicted against simulated loss per eval set, and the table of how well every law holds."""
    mixtures, losses, errors = columns(proxies, model)
    use = np.isfinite(losses).any(axis=0)
    if not use.any():
        return None
    predicted = model.at_points.predict(mixtures)
    points, measured = ("trained probes", "measured") if model.points else ("simulated mixtures", "simulated")
    order = sorted(np.flatnonzero(use).tolist(), key=lambda e: -(document.laws[model.metrics[e]].loo_rmse or 0.0))
    panels = []
    for e in order[:MAX_PANELS]:
        keep = np.isfinite(losses[:, e])
        metric = model.metrics[e]
        error = None if errors is None else np.nan_to_num(errors[keep, e])
        label = f"{metric}: predicted against {measured} loss of {int(keep.sum())} mixtures"
        art = agreement_panel(
            predicted[keep, e],
            losses[keep, e],
            error,
            proxies.left_out[keep],
            xlabel="predicted",
            ylabel=measured,
            label=label,
        )
        panels.append(_figure(metric, art, _law_note(document, metric)))
    words = (
        f"Loss in {document.units} of {len(losses)} {points} against the law fitted to them; the dashed "
        f"line is agreement{_odd_words(proxies, model)}{_length_words(document)}. "
        "Left-out error: each point predicted by the law fitted without it."
    )
    if len(order) > MAX_PANELS:
        words += f" Shown: {MAX_PANELS} of {len(order)} eval sets, largest left-out error first."
    return _section("agreement", f"Predicted against {measured}", words, panels)


def quality_table(document: MixtureFile, model: Model) -> Html:
    """Every law's numbers."""
    at = model.predict(model.vector(document.mixture))[0]
    rows = []
    for e, (metric, law) in enumerate(document.laws.items()):
        cells = [
            DASH if law.num_points is None else str(law.num_points),
            *(number(law.rmse, 4), number(law.loo_rmse, 4), number(law.spearman), number(law.loo_spearman)),
            number(float(at[e])),
        ]
        if document.bytes_per_token:
            size = document.bytes_per_token.get(metric)
            cells.append(number(float(at[e]) / (size * np.log(2))) if size else DASH)
        rows.append(row(metric, *cells))
    head = ["Eval set", "n", "RMSE", "RMSE left out", "Rank corr.", "Rank corr. left out", "Loss at mixture"]
    head += ["Bits per byte"] if document.bytes_per_token else []
    return table(head, rows, caption=f"How well each law holds ({document.units})")


def effect_matrix(model: Model) -> Html:
    """Change of every eval set's loss when one more percent of the tokens goes to a domain."""
    centre = np.full(len(model.coordinates), 1 / len(model.coordinates)) @ model.A
    rise = model.law.gradient(centre)
    slope = (rise @ model.A.T - (rise @ centre)[:, None]) * 10  # millinats per percent point
    slope = slope[:MATRIX_LIMIT, :MATRIX_LIMIT]
    top = float(np.abs(slope).max()) or 1.0
    rows = []
    for e, metric in enumerate(model.metrics[: len(slope)]):
        cells = []
        for value in slope[e]:
            step = round(4 * abs(float(value)) / top)
            kind = f"{'down' if value < 0 else 'up'}{step}" if step else None
            cells.append(el("td", number(float(value), 1, sign=True), class_=kind))
        rows.append(el("tr", el("th", metric, scope="row"), *cells))
    head = ["Eval set", *model.coordinates[: slope.shape[1]]]
    caption = "Change in loss, thousandths of a nat, per percent point given to a domain by all, at the centre"
    if len(model.metrics) > MATRIX_LIMIT or len(model.coordinates) > MATRIX_LIMIT:
        shown, whole = slope.shape, (len(model.metrics), len(model.coordinates))
        caption += f"; the first {shown[0]} {TIMES} {shown[1]} of {whole[0]} {TIMES} {whole[1]}"
    return folded("Who helps whom: table of effects", table(head, rows, caption=caption, class_="matrix"))


def _curve_table(model: Model, grid: FloatArray, losses: FloatArray) -> Html:
    step = (len(grid) - 1) // 10
    rows = [row(percent(float(grid[i]), 0), *(number(float(v)) for v in losses[i])) for i in range(0, len(grid), step)]
    head = [f"Share of {model.coordinates[1]}", *model.metrics]
    return folded("Data table", table(head, rows, caption="Predicted loss along the line"))


def _band_words(model: Model, of: str = "") -> str:
    return f"; band: {percent(model.level, 0)} interval{of} over {len(model.draws)} draws" if model.draws else ""


def _capped(shown: int, model: Model) -> str:
    more = len(model.metrics) - shown
    return f" Shown: the first {shown} of {shown + more} eval sets; the what-if view draws any of them." if more else ""


def _law_note(document: MixtureFile, metric: str) -> str:
    law = document.laws[metric]
    parts = [f"n = {law.num_points}"] if law.num_points is not None else []
    parts += [f"left-out error {number(law.loo_rmse, 4)}"] if law.loo_rmse is not None else []
    return " · ".join(parts)


def _figure(title: str, art: Html, note: str) -> Html:
    return el("figure", el("figcaption", el("b", title), el("span", note)), art)


def _section(id_: str, title: str, words: str, panels: list[Html], *more: Html | str) -> Html:
    notes = "".join(m for m in more if not isinstance(m, Html))
    below = [m for m in more if isinstance(m, Html)]
    return el(
        "section",
        el("h2", title),
        el("p", words + notes, class_="caption"),
        el("div", join(panels), class_="panels"),
        *below,
        id=id_,
    )
