"""The report of a life: what the mixture was and why, what was learned and forgotten, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from opmix.compute.cost import SEARCH_PURPOSES
from opmix.report.html import Html, count, el, join, number, percent, row, scientific, span, table
from opmix.report.life_figures import loss_panel, stream_panel
from opmix.results.life import DecidedSegment, LifeFile, LossEntry, ScoreEntry, Spread, StageEntry, TargetLosses


def life_sections(life: LifeFile) -> dict[str, Html]:
    """Sections by id, in order."""
    lives = life.lives
    return {
        "summary": _opening(life, lives),
        "stages": _stages(life),
        "losses": _losses(lives),
        "forgetting": _forgetting(life, lives),
        "cost": _cost(lives),
    }


def _opening(life: LifeFile, lives: Sequence[Sequence[StageEntry]]) -> Html:
    first, last = lives[0], life.stages[-1]
    training = sum(s.cost.flops.get("training", 0.0) for s in first)
    search = sum(s.cost.flops.get(p, 0.0) for s in first for p in SEARCH_PURPOSES)
    final = last.mean_test_loss
    worst = max(
        ((d, v.mean) for s in life.stages for d, v in s.forgetting.items() if v.mean is not None),
        key=lambda x: x[1],
        default=None,
    )
    facts = [
        ("Mean test loss", join([number(final.mean), el("small", " nats per token")]), _deviation(final)),
        ("Stages", str(len(first)), f"{count(sum(s.tokens for s in first))} tokens"),
        ("Search", percent(search / training if training else None), f"of {scientific(training)} training FLOPs"),
        (
            "Most forgotten in a stage",
            "nothing old" if worst is None else worst[0] if worst[1] > 0 else "nothing",
            "" if worst is None or worst[1] <= 0 else f"{number(worst[1], sign=True)} nats",
        ),
    ]
    keys = el("dl", *(_key(*fact) for fact in facts), class_="keys")
    parts = [(part, stage) for stage in first for part in stage.parts]
    names = list(dict.fromkeys(d for _, stage in parts for d in stage.domains))
    ends, starts, done = [], [], 0.0
    for stage in first:
        starts.append((done / 1e6, stage.name))
        for part in stage.parts:
            done += part.tokens
            ends.append(done / 1e6)
    figure = el(
        "figure",
        stream_panel(ends, [p.mixture for p, _ in parts], names, starts),
        el("figcaption", "Mixture over the life"),
    )
    return el(
        "section",
        el("h1", _heading(life, lives)),
        el("p", _lead(life, worst), class_="lead"),
        keys,
        el("div", figure, _final_table(life, first), class_="split"),
        id="summary",
        aria_label="Summary",
    )


def _heading(life: LifeFile, lives: Sequence[Sequence[StageEntry]]) -> str:
    """How the mean test loss came out, over seeds; of what was measured before the first training, if that was not from scratch."""
    final = life.stages[-1].mean_test_loss.mean
    over = f"over {len(lives[0])} stages" if len(lives[0]) > 1 else "in one stage"
    pairs = []
    for stages in lives:
        first, last = stages[0].losses["test"], stages[-1].losses["test"]
        known = {d: x.before for d, x in first.items() if x.before is not None and d in last}
        if known and stages[0].old_mixture:
            pairs.append((fmean(known.values()), fmean(last[d].after for d in known)))
    if not pairs:
        return f"From scratch to a test loss of {number(final)} {over}"
    before, after = fmean(b for b, _ in pairs), fmean(a for _, a in pairs)
    return f"Test loss {'fell' if after < before else 'rose'} from {number(before)} to {number(after)} {over}"


def _lead(life: LifeFile, worst: tuple[str, float] | None) -> str:
    """What was forgotten, and what the searches did."""
    if worst is None:
        forgotten = "There was nothing old to forget"
    elif worst[1] <= 0:
        forgotten = "Nothing that was known before a stage was worse after it"
    else:
        forgotten = f"Most was forgotten of {worst[0]}: {number(worst[1], sign=True)} nats in one stage"
    decided = [part for stage in life.lives[0] for part in stage.decisions]
    moved = sum(part.action == "move" for part in decided)
    searches = f"{moved} of {len(decided)} searches moved the mixture" if decided else "no mixture was searched for"
    return f"{forgotten}; {searches}."


def _key(name: str, value: Html | str, note: str) -> Html:
    return el("div", el("dt", name), el("dd", el("div", value, class_="value"), el("div", note, class_="note")))


def _final_table(life: LifeFile, first: Sequence[StageEntry]) -> Html:
    last, several = life.stages[-1], len(life.seeds) > 1
    rows = []
    for domain, loss in last.test_loss.items():
        share = percent(last.mixture[domain].mean if domain in last.mixture else None)
        rows.append(row(domain, share, number(loss.mean), *([_deviation(loss)] if several else [])))
    head = ["Domain", "Last share", "Test loss", *(["Over seeds"] if several else [])]
    return table(head, rows, caption=f"Where it ended: after {first[-1].name}")


def _stages(life: LifeFile) -> Html:
    """Decisions, and predicted beside measured, one block a stage of the first seed."""
    seed, lived = next(iter(life.seeds.items()))
    blocks = [
        el("h2", "Stage by stage"),
        el("p", f"Seed {seed}. Losses in nats per token on the valid split.", class_="lead"),
    ]
    for stage in lived.stages:
        blocks.append(el("h3", f"{stage.name}: {count(stage.tokens)} tokens"))
        decided = stage.decisions
        for part in decided:
            link = f"{stage.folder}/search-{part.steps[0]}/report.html"
            blocks.append(el("p", f"Step {part.steps[0]}: {part.reason}. ", el("a", "Its report", href=link)))
        if not decided:
            blocks.append(el("p", "No search: the mixture was fixed."))
        last = stage.last_decision
        told_of = _predictions(last)
        rows = []
        for domain, loss in stage.losses["valid"].items():
            really = loss.after - loss.before if loss.before is not None else None
            rows.append(
                row(
                    domain,
                    percent(stage.mixture.get(domain, 0.0)),
                    span(None if last is None else last.share_interval(domain), 2),
                    number(loss.before),
                    number(loss.after),
                    number(really, sign=True),
                    number(told_of.get(domain), sign=True),
                )
            )
        head = ["Domain", "Share", "Interval", "Before", "After", "Change of loss", "By the probes"]
        blocks.append(
            table(head, rows, caption="Share and loss; what short probes predicted beside what the whole stage did")
        )
        if stage.targets is not None:
            blocks.append(_targets(stage.targets, told_of))
        if stage.scores:
            blocks.append(_scores(stage.scores))
        if stage.tasks:
            rows = [row(t["task"], t["metric"], number(t["value"]), span(t["interval"])) for t in stage.tasks]
            blocks.append(
                table(
                    ["Task", "Metric", "Value", "95 % interval"], rows, caption="lm-evaluation-harness, after the stage"
                )
            )
        blocks += [el("p", f"Note: {note}", class_="caption") for note in stage.notes]
    return el("section", *blocks, id="stages")


def _targets(losses: TargetLosses, told_of: Mapping[str, float]) -> Html:
    rows = []
    for target, test in losses.test.items():
        rows.append(
            row(
                target,
                "yes" if target in losses.aimed_at else "no",
                number(test.before),
                number(test.after),
                _change(test),
                _change(losses.valid[target]),
                number(told_of[target], sign=True) if target in told_of else "",
            )
        )
    head = ["Target", "Aimed at", "Test before", "Test after", "Change", "On valid", "Probes' change"]
    return table(head, rows, caption="Targets, never trained on: valid chooses, test judges")


def _predictions(decided: DecidedSegment | None) -> dict[str, float]:
    """By evaluation set: change of the loss that the probes foretold, as far as they did."""
    if decided is None:
        return {}
    pairs = {name: (loss, decided.baseline.get(name)) for name, loss in decided.predicted.items()}
    return {name: loss - start for name, (loss, start) in pairs.items() if loss is not None and start is not None}


def _change(loss: LossEntry) -> Html | str:
    return number(loss.after - loss.before, sign=True) if loss.before is not None else ""


def _scores(scores: Mapping[str, ScoreEntry]) -> Html:
    rows = []
    for domain, score in scores.items():
        cells = [
            f"{s['right']} of {s['total']} ({span(s['interval'], 2)})" if s else "" for s in (score.before, score.after)
        ]
        rows.append(row(domain, *cells))
    return table(
        ["Domain", "Before", "After"],
        rows,
        caption="Right answers on the test split, with 95 % intervals; never fitted",
    )


def _losses(lives: Sequence[Sequence[StageEntry]]) -> Html:
    total = sum(s.tokens for s in lives[0]) / 1e6
    names = list(lives[0][-1].losses["test"])
    panels = []
    for name in names:
        lines = []
        for stages in lives:
            done = 0.0
            points: list[tuple[float, float]] = []
            for stage in stages:
                loss = stage.losses["test"].get(name)
                # The loss of random weights would squeeze everything after it.
                untrained = stage is stages[0] and not stage.old_mixture
                if loss is not None and not points and not untrained and loss.before is not None:
                    points.append((done / 1e6, loss.before))
                done += stage.tokens
                if loss is not None:
                    points.append((done / 1e6, loss.after))
            lines.append(points)
        panels.append(el("figure", el("figcaption", name), loss_panel(name, lines, _trained(lives[0], name), total)))
    lead = el("p", "Test loss before and after every stage; shaded where the domain had a share.", class_="lead")
    return el("section", el("h2", "Loss over the life"), lead, el("div", *panels, class_="panels"), id="losses")


def _trained(stages: Sequence[StageEntry], name: str) -> list[tuple[float, float]]:
    spans, done = [], 0.0
    for stage in stages:
        for part in stage.parts:
            if part.mixture.get(name, 0.0) > 0:
                spans.append((done / 1e6, (done + part.tokens) / 1e6))
            done += part.tokens
    return spans


def _forgetting(life: LifeFile, lives: Sequence[Sequence[StageEntry]]) -> Html:
    names = list(lives[0][-1].losses["test"])
    rows = []
    for name in names:
        cells = [stage.forgetting.get(name) for stage in life.stages]
        rows.append(row(name, *(f"{number(c.mean, sign=True)} {_deviation(c)}".strip() if c else "" for c in cells)))
    head = ["Domain", *(stage.name for stage in life.stages)]
    lead = el(
        "p",
        "Rise of the test loss of what was known before a stage, in nats per token; a minus is a gain.",
        class_="lead",
    )
    return el(
        "section", el("h2", "Forgetting"), lead, table(head, rows, caption="By stage; mean over seeds"), id="forgetting"
    )


def _cost(lives: Sequence[Sequence[StageEntry]]) -> Html:
    rows = []
    for stage in lives[0]:
        tokens, flops = stage.cost.tokens, stage.cost.flops
        for purpose in flops:
            rows.append(row(stage.name, purpose, count(tokens[purpose]), scientific(flops[purpose])))
        share = f"{percent(stage.cost.search_share)} of its training"
        rows.append(row(stage.name, "search in all", "", share, class_="total"))
    shown = table(["Stage", "Purpose", "Tokens", "FLOPs"], rows, caption="Ledger, first seed", class_="narrow")
    lead = "Tokens that were computed with; only those of training are the stage's own, the others bought its decision."
    return el("section", el("h2", "Cost"), el("p", lead, class_="lead"), shown, id="cost")


def _deviation(value: Spread) -> str:
    return f"± {number(value.sd)} ({value.n} seeds)" if value.sd is not None else ""
