"""The pages: a list of runs, two or more decisions beside each other, the decisions of a life in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from opmix.errors import OpMixError
from opmix.report.html import Html, el, join, number, percent, raw, row, scientific, span, table
from opmix.results.mixture import NAME, MixtureFile
from opmix.view.runs import RunLine

_SHOWN = 4
_WORDS = {"move": "change", "keep": "keep"}

SCRIPT = """
'use strict';
const place = document.getElementById('runs');
let last = null;
async function refresh() {
  try {
    const answer = await fetch('/list', {cache: 'no-store'});
    const text = await answer.text();
    if (answer.ok && text !== last) {
      if (last !== null) {
        const chosen = new Set([...place.querySelectorAll('input:checked')].map((box) => box.value));
        const active = document.activeElement && document.activeElement.value;
        place.innerHTML = text;
        for (const box of place.querySelectorAll('input')) {
          box.checked = chosen.has(box.value);
          if (box.value === active) box.focus();
        }
      }
      last = text;
    }
    document.getElementById('live').textContent = '';
  } catch (error) {
    document.getElementById('live').textContent = 'opmix view has ended; this is what it showed last.';
  }
  setTimeout(refresh, 2000);
}
refresh();
"""
"""Asks for the list every two seconds and puts it in place where it changed; ticks stay."""


def style() -> str:
    """The report's style, and what a list needs."""
    own = (
        ".running{color:var(--accent);font-weight:600} .damaged{color:var(--second)} td a{color:var(--accent)} "
        "form button{font:inherit;padding:.3rem .8rem} #runs :is(td,th){text-align:left;white-space:normal}"
    )
    return (resources.files("opmix.report") / "report.css").read_text(encoding="utf-8") + own


def page(title: str, body: Html, *, script: str = "") -> str:
    """A whole page without anything from outside."""
    return "<!DOCTYPE html>" + el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("title", f"{title} · opmix"),
            el("style", raw(style())),
        ),
        el(
            "body",
            el("header", el("p", el("a", "opmix", href="/"), el("span", title), class_="mark")),
            el("main", body, id="main"),
            el("script", raw(script)) if script else None,
        ),
        lang="en",
    )


def index(root: Path, lines: Sequence[RunLine]) -> str:
    """All runs; the list is refreshed while the page is open."""
    body = el(
        "section",
        el("h1", "Runs"),
        el("p", f"Below {root}. The list follows runs while they go on; tick two or more decisions to compare them."),
        el("p", "", id="live", role="status"),
        el("form", el("div", listing(lines), id="runs"), action="/compare", method="get"),
    )
    return page("runs", body, script=SCRIPT)


def listing(lines: Sequence[RunLine]) -> Html:
    """The list itself."""
    if not lines:
        return el("p", "No run yet: opmix search, fit, run and compare leave their folders here with --out.")
    head = ["run", "verb", "state", "mixture", "gain, nats", "what it says", "compare"]
    made = table(head, [_line(line) for line in lines], caption=f"{len(lines)} runs, the newest first")
    return join(
        [
            made,
            el("button", "Compare the ticked", type="submit"),
        ]
    )


def _line(line: RunLine) -> Html:
    address = quote(line.path, safe="/")
    name: Html | str = line.path
    if line.report:
        name = el("a", line.path, href=f"/report/{address}/report.html")
    history = el("a", " history", href=f"/history?run={quote(line.path, safe='')}") if line.kind == "run" else None
    top = sorted(line.mixture.items(), key=lambda item: -item[1])[:_SHOWN]
    more = "" if len(line.mixture) <= _SHOWN else f" and {len(line.mixture) - _SHOWN} more"
    decided = line.state == "finished" and bool(line.action)
    box = (
        el("input", type="checkbox", name="run", value=line.path, aria_label=f"compare {line.path}") if decided else ""
    )
    return row(
        join([name, history]),
        line.kind,
        el("span", line.state, class_=line.state),
        ", ".join(f"{d} {percent(x, 0)}" for d, x in top) + more,
        "" if line.gain is None else number(line.gain, 4, sign=True),
        line.told,
        box,
    )


def compared(root: Path, names: Sequence[str]) -> str:
    """Decisions beside each other: shares with intervals, what decided, what it cost.

    Raises:
        OpMixError: Fewer than two, or one that is none.
    """
    if not 2 <= len(names) <= 8:
        raise OpMixError(f"{len(names)} runs; tick two to eight decisions to compare them")
    found = {name: MixtureFile.read(root / name) for name in names}
    domains = list(dict.fromkeys(d for one in found.values() for d in one.mixture))
    rows = [
        row(d, *(_share(one, d) for one in found.values()), _apart([one.mixture.get(d, 0.0) for one in found.values()]))
        for d in domains
    ]
    facts = [row(name, *(told(one) for one in found.values())) for name, told in _FACTS.items()]
    titles = [el("a", name, href=f"/report/{quote(name, safe='/')}/report.html") for name in names]
    body = el(
        "section",
        el("h1", "Decisions compared"),
        el("p", "Shares of the tokens, with the interval of the optimum where it is the mixture."),
        table(["domain", *titles, "largest difference"], rows, caption="Mixtures"),
        table(["", *titles], facts, caption="What decided"),
        *(
            el("p", el("strong", f"{name}: "), one.decision.reason if one.decision else "")
            for name, one in found.items()
        ),
    )
    return page("compared", body)


def _decided(found: MixtureFile) -> str:
    return _WORDS[found.decision.action] if found.decision else ""


def _probability(found: MixtureFile) -> str:
    return percent(found.decision.known_probability, 0) if found.decision else ""


def _cost(found: MixtureFile) -> str:
    return scientific(found.cost.total("flops")) if found.cost else ""


def history(root: Path, name: str) -> str:
    """The decisions of a life, in order, also while it goes on.

    Raises:
        OpMixError: It has none yet.
    """
    places = sorted((root / name).glob(f"seed-*/*/search-*/{NAME}"), key=_in_order)
    if not places:
        raise OpMixError(f"{name}: no decision yet; come back when the first search of the life is over")
    found = [(place, MixtureFile.read(place.parent)) for place in places]
    domains = list(dict.fromkeys(d for _, one in found for d in one.mixture))
    rows = []
    for place, one in found:
        seed, stage, search = place.relative_to(root / name).parts[:3]
        there = quote(place.parent.relative_to(root).as_posix(), safe="/")
        label = f"{stage}, step {search.removeprefix('search-')} ({seed})"
        title = el("a", label, href=f"/report/{there}/report.html")
        action = _WORDS[one.decision.action] if one.decision else ""
        rows.append(row(title, action, _gain(one), *(_share(one, d) for d in domains)))
    body = el(
        "section",
        el("h1", f"History of {name}"),
        el("p", "Every decision of the life in order; each leads to its report."),
        table(["decided at", "decision", "gain, nats", *domains], rows, caption=f"{len(rows)} decisions"),
    )
    return page(f"history of {name}", body)


def failed(told: str) -> str:
    """A page for what cannot be shown."""
    return page("not here", el("section", el("h1", "Not here"), el("p", told), el("p", el("a", "All runs", href="/"))))


def _in_order(place: Path) -> tuple[str, str, int]:
    seed, stage, search = place.parts[-4:-1]
    number = search.removeprefix("search-")
    return seed, stage, int(number) if number.isdigit() else 0


def _share(found: MixtureFile, domain: str) -> str:
    if domain not in found.mixture:
        return ""
    own = found.interval.get(domain) if found.mixture == found.optimum else None
    return percent(found.mixture[domain]) + ("" if own is None else f" ({span(own, 1, scale=100)})")


def _apart(shares: Sequence[float]) -> str:
    return percent(max(shares) - min(shares))


def _gain(found: MixtureFile) -> str:
    if found.decision is None:
        return ""
    gain, evidence = found.decision.known_gain
    return f"{number(gain, 4, sign=True)} {evidence}"


_FACTS: dict[str, Callable[[MixtureFile], str]] = {
    "decision": _decided,
    "gain, nats": _gain,
    "probability": _probability,
    "cost, FLOPs": _cost,
    "made": lambda found: found.created,
}
"""Rows below the mixtures of a comparison."""
