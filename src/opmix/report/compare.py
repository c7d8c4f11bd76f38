"""The report of a comparison: who is best and by how much, at what cost, who forgets what, and on which mixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from opmix.report.compare_figures import Spent, forgetting_panel, frontier, pareto_panel
from opmix.report.html import (
    THIN,
    Html,
    Scale,
    count,
    duration,
    el,
    join,
    number,
    percent,
    row,
    scientific,
    signed,
    table,
    whisker,
)
from opmix.results.comparison import ComparedLife, CompareFile, ContenderRow
from opmix.results.comparison import Spent as SpentEntry
from opmix.results.comparison_verdict import comparison_verdict
from opmix.results.life import Spread


def comparison_sections(content: CompareFile) -> dict[str, Html]:
    """Sections by id, in order."""
    rows = content.table
    return {
        "summary": _opening(content, rows),
        "domains": _domains(content, rows),
        "forgetting": _forgetting(content, rows),
        "mixtures": _mixtures(content, rows),
        "cost": _cost(content, rows),
    }


def _opening(content: CompareFile, rows: Sequence[ContenderRow]) -> Html:
    best, reference = rows[0], next((r for r in rows if r.entrant == content.reference), rows[0])
    points = [Spent(r.entrant, r.total_flops.known, r.mean_loss.known, _known(r.mean_loss.sd)) for r in rows]
    place = rows.index(reference) + 1
    kept = [r for r in rows if r.forgetting.mean is not None]
    least = min(kept, key=lambda r: r.forgetting.known, default=None)
    gap = reference.mean_loss.known - best.mean_loss.known
    facts = [
        ("Lowest test loss", best.entrant, join([number(best.mean_loss.known, 4), " nats per token"])),
        (
            content.reference,
            f"{place} of {len(rows)}",
            f"{number(gap, 4, sign=True)} nats from the best" if gap else "the best",
        ),
        (
            "Forgets least",
            least.entrant if least else "nothing old",
            f"{number(least.forgetting.known, sign=True)} nats on what was known" if least else "",
        ),
        ("On the frontier", str(len(frontier(points))), "no other has less loss for fewer FLOPs"),
    ]
    keys = el(
        "dl",
        *(
            el("div", el("dt", n), el("dd", el("div", v, class_="value"), el("div", t, class_="note")))
            for n, v, t in facts
        ),
        class_="keys",
    )
    old = list(_lives(content, best)[0].forgetting)
    new = [d for d in _lives(content, best)[0].losses if d not in old]
    learned = [(r.entrant, fmean(_mean(content, r, "losses", d) for d in new or old), r.forgetting.known) for r in kept]
    panels = [
        el(
            "figure",
            pareto_panel(points, content.reference),
            el("figcaption", "Loss against all FLOPs; the line is the frontier"),
        ),
        el(
            "figure",
            forgetting_panel(learned, content.reference),
            el("figcaption", "What was new, and what was forgotten"),
        )
        if new and kept
        else None,
    ]
    return el(
        "section",
        *verdict_html(content, "h1"),
        keys,
        el("div", *panels, class_="panels"),
        comparison_table(content),
        id="summary",
        aria_label="Summary",
    )


def verdict_html(content: CompareFile, heading: str) -> list[Html]:
    """The sentence that the terminal says too: what to use as a heading, why below it."""
    use, _, why = signed(comparison_verdict(content)).partition(": ")
    return [el(heading, use), el("p", why[:1].upper() + why[1:], class_="lead")]


def comparison_html(content: CompareFile) -> Html:
    """What a notebook shows: the verdict and the table."""
    return join([el("p", el("strong", signed(comparison_verdict(content)))), comparison_table(content)])


def comparison_table(content: CompareFile) -> Html:
    """A `compare.json`: a row an entrant, best first."""
    rows = content.table
    scale = Scale.around(
        [_known(None if r.difference is None else r.difference.mean) for r in rows],
        [e for r in rows for e in _interval(r) or ()],
    )
    made = []
    for r in rows:
        difference = r.difference
        label = "the reference" if difference is None else f"{number(difference.mean, 4, sign=True)} nats"
        drawn = whisker(
            0.0 if difference is None else difference.known, _interval(r), scale, label=f"{r.entrant}: {label}"
        )
        made.append(
            row(
                r.entrant,
                spread_text(r.mean_loss, 4),
                drawn,
                "" if difference is None else spread_text(difference, 4, sign=True),
                spread_text(r.forgetting, sign=True),
                scientific(r.total_flops.known),
            )
        )
    seeds = max(r.seeds for r in rows)
    head = ["Method", "Test loss", "", f"Against {content.reference}", "Forgotten", "FLOPs"]
    said = f"mean ± standard deviation over {seeds} seeds, differences paired by seed" if seeds > 1 else "one seed"
    over = "targets, as they are weighed" if content.judged_by else "domains"
    return table(head, made, caption=f"Mean over {over}, nats per token; {said}")


def _interval(r: ContenderRow) -> tuple[float, float] | None:
    found = r.difference
    if found is None or found.sd is None:
        return None
    return found.known - found.sd, found.known + found.sd


def _domains(content: CompareFile, rows: Sequence[ContenderRow]) -> Html:
    names = list(_lives(content, rows[0])[0].losses)
    made = [row(r.entrant, *(number(_mean(content, r, "losses", d)) for d in names)) for r in rows]
    shown = table(["Method", *names], made, caption="Test loss at the end, mean over seeds, nats per token")
    return el("section", el("h2", "Domain by domain"), _targets(content, rows), shown, id="domains")


def _targets(content: CompareFile, rows: Sequence[ContenderRow]) -> Html | None:
    """Test losses of the targets, where there are any."""
    names = list(_lives(content, rows[0])[0].targets or ())
    if not names:
        return None
    made = [row(r.entrant, *(number(_mean(content, r, "targets", t)) for t in names)) for r in rows]
    judging = ", ".join(content.judged_by or ()) or "none"
    return table(["Method", *names], made, caption=f"Targets, never trained on; judged by: {judging}")


def _forgetting(content: CompareFile, rows: Sequence[ContenderRow]) -> Html:
    names = list(_lives(content, rows[0])[0].forgetting)
    made = []
    for r in rows:
        values = [_mean(content, r, "forgetting", d) for d in names]
        made.append(row(r.entrant, number(r.forgetting.mean, sign=True), *(number(v, sign=True) for v in values)))
    lead = el(
        "p",
        "Rise of the test loss from the end of the stage that first had a domain to the end of the life; a minus is a "
        "gain.",
        class_="lead",
    )
    shown = table(["Method", "Mean", *names], made, caption="Nats per token, mean over seeds")
    return el("section", el("h2", "Forgetting"), lead, shown, id="forgetting")


def _mixtures(content: CompareFile, rows: Sequence[ContenderRow]) -> Html:
    blocks = []
    for index, stage in enumerate(content.contested):
        names = list(dict.fromkeys(d for r in rows for life in _lives(content, r) for d in life.stages[index].mixture))
        made = []
        for r in rows:
            shares = [[life.stages[index].mixture.get(d, 0.0) for life in _lives(content, r)] for d in names]
            made.append(row(r.entrant, *(percent(fmean(s)) + (_apart(s)) for s in shares)))
        blocks.append(
            table(["Method", *names], made, caption=f"{stage}: shares of training tokens, mean (and range) over seeds")
        )
    return el("section", el("h2", "What they mixed"), *blocks, id="mixtures")


def _apart(shares: Sequence[float]) -> str:
    low, high = min(shares), max(shares)
    return f" ({number(100 * low, 0)} to {number(100 * high, 0)})" if high - low > 0.005 else ""


def _cost(content: CompareFile, rows: Sequence[ContenderRow]) -> Html:
    made = []
    for r in rows:
        shared = fmean(life.cost.flops.shared for life in _lives(content, r))
        searched, trained = r.search_flops.known, r.training_flops.known
        seconds = duration(_spent(content, r, lambda s: sum(s.seconds.values())))
        written = _bytes(_spent(content, r, lambda s: s.bytes_written))
        share = percent(searched / trained if trained else None)
        made.append(
            row(
                r.entrant,
                scientific(shared),
                scientific(searched),
                share,
                scientific(trained),
                count(r.tokens.known),
                seconds,
                written,
            )
        )
    head = ["Method", "Shared", "Search", "of training", "Training", "Tokens trained", "Time", "Search wrote"]
    lead = el(
        "p",
        "Searches, and passes that methods make beside training, are charged in full. Shared stages were trained once.",
        class_="lead",
    )
    shown = table(head, made, caption="FLOPs, time and disk per seed; the time leaves out the shared stages")
    return el("section", el("h2", "Cost"), lead, shown, id="cost")


def _lives(content: CompareFile, r: ContenderRow) -> list[ComparedLife]:
    return content.lives(r.entrant)


def _mean(content: CompareFile, r: ContenderRow, what: str, domain: str) -> float:
    found = [getattr(life, what) or {} for life in _lives(content, r)]
    return fmean(values[domain] for values in found if domain in values)


def _spent(content: CompareFile, r: ContenderRow, amount: Callable[[SpentEntry], float]) -> float | None:
    """Mean over seeds of what differs from run to run; None where it was not kept."""
    found = content.spent.get(r.entrant, {})
    return fmean(map(amount, found.values())) if found else None


def _bytes(value: float | None) -> str:
    return f"{value:.0f}{THIN}B" if value is not None and value < 1000 else f"{count(value)}B"


def spread_text(value: Spread, digits: int = 3, *, sign: bool = False) -> str:
    """`1.234 ± 0.005`; without a deviation where there is one seed."""
    if value.mean is None:
        return number(None)
    return number(value.mean, digits, sign=sign) + (f" ± {number(value.sd, digits)}" if value.sd is not None else "")


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
