"""The report of a life: what the mixture was and why, what was learned and forgotten, what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from opmix.compute.cost import SEARCH_PURPOSES
from opmix.report.html import Html, count, el, folded, join, number, percent, row, scientific, span, table
from opmix.report.life_figures import loss_panel, stream_panel
from opmix.results.lives import share_interval
from opmix.results.manifest import Manifest

Stage = Mapping[str, Any]


def life_sections(content: Mapping[str, Any], manifest: Manifest | None) -> dict[str, Html]:
    """Sections by id, in order."""
    lives: list[list[Stage]] = [life["stages"] for life in content["seeds"].values()]
    made = {
        "summary": _opening(content, lives),
        "stages": _stages(content),
        "losses": _losses(lives),
        "forgetting": _forgetting(content, lives),
        "cost": _cost(lives),
    }
    if manifest is not None:
        text = json.dumps(manifest.content, indent=2, ensure_ascii=False)
        made["configuration"] = el(
            "section",
            el("h2", "Configuration"),
            folded("manifest.json", el("pre", text, tabindex="0")),
            id="configuration",
        )
    return made


def _opening(content: Mapping[str, Any], lives: Sequence[Sequence[Stage]]) -> Html:
    first, last = lives[0], content["stages"][-1]
    training = sum(s["cost"]["flops"].get("training", 0.0) for s in first)
    search = sum(s["cost"]["flops"].get(p, 0.0) for s in first for p in SEARCH_PURPOSES)
    final = last["mean_test_loss"]
    worst = max(
        ((d, v["mean"]) for s in content["stages"] for d, v in s["forgetting"].items()),
        key=lambda x: x[1],
        default=None,
    )
    facts = [
        ("Mean test loss", join([number(final["mean"]), el("small", " nats per token")]), _deviation(final)),
        ("Stages", str(len(first)), f"{count(sum(s['tokens'] for s in first))} tokens"),
        ("Search", percent(search / training if training else None), f"of {scientific(training)} training FLOPs"),
        (
            "Most forgotten in a stage",
            "nothing old" if worst is None else worst[0] if worst[1] > 0 else "nothing",
            "" if worst is None or worst[1] <= 0 else f"{number(worst[1], sign=True)} nats",
        ),
    ]
    keys = el("dl", *(_key(*fact) for fact in facts), class_="keys")
    parts = [(part, stage) for stage in first for part in stage["parts"]]
    names = list(dict.fromkeys(d for _, stage in parts for d in stage["domains"]))
    ends, starts, done = [], [], 0.0
    for stage in first:
        starts.append((done / 1e6, stage["name"]))
        for part in stage["parts"]:
            done += part["tokens"]
            ends.append(done / 1e6)
    figure = el(
        "figure",
        stream_panel(ends, [p["mixture"] for p, _ in parts], names, starts),
        el("figcaption", "Mixture over the life"),
    )
    return el(
        "section",
        el("h1", _heading(content, lives)),
        el("p", _lead(content, worst), class_="lead"),
        keys,
        el("div", figure, _final_table(content, first), class_="split"),
        id="summary",
        aria_label="Summary",
    )


def _heading(content: Mapping[str, Any], lives: Sequence[Sequence[Stage]]) -> str:
    """How the mean test loss came out, over seeds; of what was measured before the first training, if that was not from scratch."""
    stages, final = lives[0], content["stages"][-1]["mean_test_loss"]["mean"]
    over = f"over {len(stages)} stages" if len(stages) > 1 else "in one stage"
    pairs = []
    for life in lives:
        first, last = life[0]["losses"]["test"], life[-1]["losses"]["test"]
        known = (
            [d for d, loss in first.items() if loss["before"] is not None and d in last]
            if life[0]["old_mixture"]
            else []
        )
        if known:
            pairs.append((fmean(first[d]["before"] for d in known), fmean(last[d]["after"] for d in known)))
    if not pairs:
        return f"From scratch to a test loss of {number(final)} {over}"
    before, after = fmean(b for b, _ in pairs), fmean(a for _, a in pairs)
    return f"Test loss {'fell' if after < before else 'rose'} from {number(before)} to {number(after)} {over}"


def _lead(content: Mapping[str, Any], worst: tuple[str, float] | None) -> str:
    """What was forgotten, and what the searches did."""
    if worst is None:
        forgotten = "There was nothing old to forget"
    elif worst[1] <= 0:
        forgotten = "Nothing that was known before a stage was worse after it"
    else:
        forgotten = f"Most was forgotten of {worst[0]}: {number(worst[1], sign=True)} nats in one stage"
    decided = [p for s in next(iter(content["seeds"].values()))["stages"] for p in s["parts"] if p["decided"]]
    moved = sum(part.get("action") == "move" for part in decided)
    searches = f"{moved} of {len(decided)} searches moved the mixture" if decided else "no mixture was searched for"
    return f"{forgotten}; {searches}."


def _key(name: str, value: Html | str, note: str) -> Html:
    return el("div", el("dt", name), el("dd", el("div", value, class_="value"), el("div", note, class_="note")))


def _final_table(content: Mapping[str, Any], first: Sequence[Stage]) -> Html:
    last, several = content["stages"][-1], len(content["seeds"]) > 1
    rows = []
    for domain, loss in last["test_loss"].items():
        share = percent(last["mixture"].get(domain, {}).get("mean"))
        rows.append(row(domain, share, number(loss["mean"]), *([_deviation(loss)] if several else [])))
    head = ["Domain", "Last share", "Test loss", *(["Over seeds"] if several else [])]
    return table(head, rows, caption=f"Where it ended: after {first[-1]['name']}")


def _stages(content: Mapping[str, Any]) -> Html:
    """Decisions, and predicted beside measured, one block a stage of the first seed."""
    seed, life = next(iter(content["seeds"].items()))
    blocks = [
        el("h2", "Stage by stage"),
        el("p", f"Seed {seed}. Losses in nats per token on the valid split.", class_="lead"),
    ]
    for stage in life["stages"]:
        blocks.append(el("h3", f"{stage['name']}: {count(stage['tokens'])} tokens"))
        decided = [part for part in stage["parts"] if part["decided"]]
        for part in decided:
            link = f"{stage['folder']}/search-{part['steps'][0]}/report.html"
            blocks.append(el("p", f"Step {part['steps'][0]}: {part['reason']}. ", el("a", "Its report", href=link)))
        if not decided:
            blocks.append(el("p", "No search: the mixture was fixed."))
        last: Mapping[str, Any] = decided[-1] if decided else {}
        rows = []
        for domain, loss in stage["losses"]["valid"].items():
            predicted, baseline = last.get("predicted", {}).get(domain), last.get("baseline", {}).get(domain)
            told = predicted - baseline if predicted is not None and baseline is not None else None
            really = loss["after"] - loss["before"] if loss["before"] is not None else None
            rows.append(
                row(
                    domain,
                    percent(stage["mixture"].get(domain, 0.0)),
                    span(share_interval(last, domain), 2),
                    number(loss["before"]),
                    number(loss["after"]),
                    number(really, sign=True),
                    number(told, sign=True),
                )
            )
        head = ["Domain", "Share", "Interval", "Before", "After", "Change of loss", "By the probes"]
        blocks.append(
            table(head, rows, caption="Share and loss; what short probes predicted beside what the whole stage did")
        )
        if stage.get("targets"):
            blocks.append(_targets(stage["targets"], last))
        if stage.get("scores"):
            blocks.append(_scores(stage["scores"]))
        if stage.get("tasks"):
            rows = [row(t["task"], t["metric"], number(t["value"]), span(t["interval"])) for t in stage["tasks"]]
            blocks.append(
                table(
                    ["Task", "Metric", "Value", "95 % interval"], rows, caption="lm-evaluation-harness, after the stage"
                )
            )
        blocks += [el("p", f"Note: {note}", class_="caption") for note in stage["notes"]]
    return el("section", *blocks, id="stages")


def _targets(losses: Mapping[str, Any], decided: Mapping[str, Any]) -> Html:
    rows = []
    for target, test in losses["test"].items():
        valid, told = losses["valid"][target], decided.get("predicted", {}).get(target)
        start = decided.get("baseline", {}).get(target)
        rows.append(
            row(
                target,
                "yes" if target in losses["aimed_at"] else "no",
                number(test["before"]),
                number(test["after"]),
                _change(test),
                _change(valid),
                number(told - start, sign=True) if told is not None and start is not None else "",
            )
        )
    head = ["Target", "Aimed at", "Test before", "Test after", "Change", "On valid", "Probes' change"]
    return table(head, rows, caption="Targets, never trained on: valid chooses, test judges")


def _change(loss: Mapping[str, Any]) -> Html | str:
    return number(loss["after"] - loss["before"], sign=True) if loss["before"] is not None else ""


def _scores(scores: Mapping[str, Any]) -> Html:
    rows = []
    for domain, score in scores.items():
        cells = [
            f"{s['right']} of {s['total']} ({span(s['interval'], 2)})" if s else ""
            for s in (score["before"], score["after"])
        ]
        rows.append(row(domain, *cells))
    return table(
        ["Domain", "Before", "After"],
        rows,
        caption="Right answers on the test split, with 95 % intervals; never fitted",
    )


def _losses(lives: Sequence[Sequence[Stage]]) -> Html:
    total = sum(s["tokens"] for s in lives[0]) / 1e6
    names = list(lives[0][-1]["losses"]["test"])
    panels = []
    for name in names:
        lines = []
        for stages in lives:
            done = 0.0
            points: list[tuple[float, float]] = []
            for stage in stages:
                loss = stage["losses"]["test"].get(name)
                # The loss of random weights would squeeze everything after it.
                untrained = stage is stages[0] and not stage["old_mixture"]
                if loss is not None and not points and not untrained and loss["before"] is not None:
                    points.append((done / 1e6, loss["before"]))
                done += stage["tokens"]
                if loss is not None:
                    points.append((done / 1e6, loss["after"]))
            lines.append(points)
        panels.append(el("figure", el("figcaption", name), loss_panel(name, lines, _trained(lives[0], name), total)))
    lead = el("p", "Test loss before and after every stage; shaded where the domain had a share.", class_="lead")
    return el("section", el("h2", "Loss over the life"), lead, el("div", *panels, class_="panels"), id="losses")


def _trained(stages: Sequence[Stage], name: str) -> list[tuple[float, float]]:
    spans, done = [], 0.0
    for stage in stages:
        for part in stage["parts"]:
            if part["mixture"].get(name, 0.0) > 0:
                spans.append((done / 1e6, (done + part["tokens"]) / 1e6))
            done += part["tokens"]
    return spans


def _forgetting(content: Mapping[str, Any], lives: Sequence[Sequence[Stage]]) -> Html:
    names = list(lives[0][-1]["losses"]["test"])
    rows = []
    for name in names:
        cells = [stage["forgetting"].get(name) for stage in content["stages"]]
        rows.append(row(name, *(f"{number(c['mean'], sign=True)} {_deviation(c)}".strip() if c else "" for c in cells)))
    head = ["Domain", *(stage["name"] for stage in content["stages"])]
    lead = el(
        "p",
        "Rise of the test loss of what was known before a stage, in nats per token; a minus is a gain.",
        class_="lead",
    )
    return el(
        "section", el("h2", "Forgetting"), lead, table(head, rows, caption="By stage; mean over seeds"), id="forgetting"
    )


def _cost(lives: Sequence[Sequence[Stage]]) -> Html:
    rows = []
    for stage in lives[0]:
        tokens, flops = stage["cost"]["tokens"], stage["cost"]["flops"]
        for purpose in flops:
            rows.append(row(stage["name"], purpose, count(tokens[purpose]), scientific(flops[purpose])))
        share = f"{percent(stage['cost']['search_share'])} of its training"
        rows.append(row(stage["name"], "search in all", "", share, class_="total"))
    shown = table(["Stage", "Purpose", "Tokens", "FLOPs"], rows, caption="Ledger, first seed", class_="narrow")
    lead = "Tokens that were computed with; only those of training are the stage's own, the others bought its decision."
    return el("section", el("h2", "Cost"), el("p", lead, class_="lead"), shown, id="cost")


def _deviation(value: Mapping[str, Any]) -> str:
    return f"± {number(value['sd'])} ({value['n']} seeds)" if value.get("sd") is not None else ""
