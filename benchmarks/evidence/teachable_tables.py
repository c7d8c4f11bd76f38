"""The tables of `teachable.py`, from its records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import record
from teachable_world import FIRST, NEVER, OLD, SECOND, SKILLS, TEXTS, read

from opmix.compute.cost import SEARCH_PURPOSES

Row = dict[str, Any]
GROUPS = {"taught": tuple(SKILLS), "old": (OLD,), "never taught": NEVER, "text": TEXTS}
ALL = tuple(name for names in GROUPS.values() for name in names)


def analyse(records: Path, results: Path) -> str:
    """Write `results` (JSON) and the tables beside it; returns the tables."""
    found = [read(path) for path in sorted(records.glob("*.json"))]
    shown = next((r["shown"] for r in found if r["arm"] == "shown"), {})
    rows = [row_of(r) for r in found if r["arm"] != "shown"]
    if not rows:
        raise SystemExit(f"{records}: no records; run `teachable.py run` first")
    base = next(r for r in rows if r["arm"] == "base")
    tables = [(demonstrated(shown), None), learned(base, rows), lived(base, rows), reached(base, rows), foretold(rows)]
    told, reach, foretold_rows = "\n".join(t for t, _ in tables), tables[3][1], tables[4][1]
    content = {
        "facts": base["facts"],
        "device": base["device"],
        "rows": rows,
        "reach": reach,
        "foretold": foretold_rows,
    }
    record(results, content)
    results.with_suffix(".md").write_text(told, encoding="utf-8")
    return told


def row_of(found: Mapping[str, Any]) -> Row:
    """Of a record what tables need: of every stage mixture, losses, scores and FLOPs; outcomes and searches are left in the record."""
    kept = {
        k: found[k]
        for k in ("arm", "seed", "facts", "device", "objective", "how", "rate", "ask", "fraction", "seconds")
        if k in found
    }
    if found["arm"] == "base":
        return {**kept, "stages": [{"judged": slim(found["judged"])}]}
    stages = []
    for stage in found["stages"]:
        flops = stage["cost"]["flops"]
        search = sum(flops.get(p, 0.0) for p in SEARCH_PURPOSES)
        stages.append(
            {
                "name": stage["name"],
                "mixture": stage["mixture"],
                "tokens": stage["tokens"],
                "judged": slim(stage["judged"]),
                "flops": {"training": flops["training"], "search": search},
                "laws": {e: {k: law[k] for k in ("c", "t")} for s in stage["searches"] for e, law in s["laws"].items()},
            }
        )
    return {**kept, "stages": stages}


def slim(judged: Mapping[str, Any]) -> Row:
    return {
        **judged,
        "scores": {n: {k: v for k, v in s.items() if k != "outcomes"} for n, s in judged["scores"].items()},
    }


def loss(judged: Mapping[str, Any], names: Sequence[str], split: str = "test") -> float:
    """Mean over sets."""
    return statistics.fmean(judged[split][n] for n in names)


def score(judged: Mapping[str, Any], skill: str) -> str:
    s = judged["scores"][skill]
    return f"{s['share']:.0%} [{s['interval'][0]:.0%}, {s['interval'][1]:.0%}]"


def flops(row: Mapping[str, Any], kind: str | None = None) -> float:
    return sum(x for s in row["stages"] for k, x in s.get("flops", {}).items() if kind in (None, k))


def table(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in body), ""])


def demonstrated(shown: Mapping[str, Any]) -> str:
    """What a teacher is worth before anything is trained."""
    body = [[ask, *(f"{s['right']} of {s['total']}" for s in found.values())] for ask, found in shown.items()]
    return table("The checkpoint, shown the answer", ["shown", *SKILLS], body)


def learned(base: Row, rows: Sequence[Row]) -> tuple[str, None]:
    """One skill alone: every rate of both objectives, and self-distillation with one setting changed."""
    start, body = base["stages"][0]["judged"], []
    for row in [base, *(r for r in rows if r["arm"].startswith(("alone-", "why-")))]:
        judged = row["stages"][0]["judged"]
        changes = [f"{loss(judged, names) - loss(start, names):+.3f}" for names in ((OLD,), (SECOND, *NEVER), TEXTS)]
        own = f"{judged['test'][FIRST]:.3f} ± {judged['error'][FIRST]:.3f}"
        cost = f"{flops(row):.2g}" if row is not base else ""
        body.append([f"`{row['arm']}`", f"{judged['valid'][FIRST]:.3f}", own, score(judged, FIRST), *changes, cost])
    same = ", ".join(f"{n} {s['same']:.0%}" for n, s in start["scores"].items())
    head = ["arm", "valid loss", "test loss", "right", OLD, "other skills", "text", "FLOPs"]
    return table(
        f"{FIRST} alone", head, body
    ) + f"\nAlways the same answer would get: {same}. Last columns: change of test loss.\n", None


def lived(base: Row, rows: Sequence[Row]) -> tuple[str, None]:
    """Two skills after each other; means over seeds."""
    start, body = base["stages"][0]["judged"], []
    arms = sorted({r["arm"] for r in rows if len(r["stages"]) == len(SKILLS)})
    for arm in arms:
        same = [r for r in rows if r["arm"] == arm]
        body.append([f"`{arm}`", str(len(same)), *cells_of(same, start)])
    begin = [f"{loss(start, names):.3f}" for names in (*GROUPS.values(), ALL)]
    body.insert(0, ["the checkpoint", "", "", *begin, *(score(start, s) for s in SKILLS), "", "", ""])
    head = ["arm", "seeds", "new share", *GROUPS, "all", *SKILLS, f"{FIRST} forgotten", "FLOPs", "of these searches"]
    return table("Two skills after each other", head, body), None


def cells_of(rows: Sequence[Row], start: Mapping[str, Any]) -> list[str]:
    def mean(value: Callable[[Row], float], form: str) -> str:
        values = [value(r) for r in rows]
        spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):{form}}{spread}"

    shares = " ".join(
        f"{statistics.fmean(r['stages'][k]['mixture'].get(n, 0.0) for r in rows):.0%}" for k, n in enumerate(SKILLS)
    )
    losses = [
        mean(lambda r, names=names: loss(r["stages"][-1]["judged"], names), ".3f") for names in (*GROUPS.values(), ALL)
    ]
    scores = [score(rows[0]["stages"][-1]["judged"], s) if len(rows) == 1 else pooled(rows, s) for s in SKILLS]
    gone = mean(lambda r: r["stages"][-1]["judged"]["test"][FIRST] - r["stages"][0]["judged"]["test"][FIRST], "+.3f")
    part = statistics.fmean(flops(r, "search") / flops(r) for r in rows)
    return [shares, *losses, *scores, gone, mean(flops, ".3g"), f"{part:.0%}"]


def pooled(rows: Sequence[Row], skill: str) -> str:
    shares = [r["stages"][-1]["judged"]["scores"][skill]["share"] for r in rows]
    return f"{statistics.fmean(shares):.0%} ({', '.join(f'{s:.0%}' for s in shares)})"


def result(row: Row) -> dict[str, float]:
    """What is compared at equal compute: losses, and right answers over both skills."""
    judged = row["stages"][-1]["judged"]
    right = statistics.fmean(s["share"] for s in judged["scores"].values())
    return {"loss, taught and old": loss(judged, (*SKILLS, OLD)), "loss, all": loss(judged, ALL), "right": right}


def reached(base: Row, rows: Sequence[Row]) -> tuple[str, list[Row]]:
    """The least FLOPs at which OP-Mix with SFT does as well as each way of self-distillation, where that beats the checkpoint."""
    body, found, start = [], [], result(base)
    ours = sorted((r for r in rows if r["arm"].startswith("opmix-sft")), key=flops)
    for row in (r for r in rows if r["arm"] in ("sequential-sdft", "replay-sdft", "frozen-sdft", "opmix-sdft")):
        wanted = result(row)
        for name, value in wanted.items():
            sign = 1 if name == "right" else -1
            made = {"arm": row["arm"], "seed": row["seed"], "result": name, "value": value, "flops": flops(row)}
            found.append(made)
            cells = [
                f"`{row['arm']}`",
                str(row["seed"]),
                name,
                f"{start[name]:.3f}",
                f"{value:.3f}",
                f"{made['flops']:.3g}",
            ]
            good = [o for o in ours if o["seed"] == row["seed"] and sign * (result(o)[name] - value) >= 0]
            if sign * (value - start[name]) <= 0:
                made["by"] = "the checkpoint"
                cells += ["the checkpoint itself", "", "0", ""]
            elif not good:
                made["by"] = None
                cells += ["none", "", "", ""]
            else:
                made |= {"by": good[0]["arm"], "with": result(good[0])[name], "by_flops": flops(good[0])}
                change = f"{made['by_flops'] / made['flops'] - 1:+.0%}"
                cells += [f"`{made['by']}`", f"{made['with']:.3f}", f"{made['by_flops']:.3g}", change]
            body.append(cells)
    head = [
        "self-distillation",
        "seed",
        "result",
        "checkpoint",
        "value",
        "FLOPs",
        "first reached by",
        "value",
        "FLOPs",
        "compute",
    ]
    return table("Compute at which OP-Mix with SFT reaches self-distillation", head, body), found


def foretold(rows: Sequence[Row]) -> tuple[str, list[Row]]:
    """The first stage's law against trainings at four shares, on what the search saw: `valid` of the old domain and the new."""
    body, found = [], []
    for search in (r for r in rows if r["arm"] in ("opmix-sft", "opmix-sdft")):
        kind, laws, pairs = search["objective"], search["stages"][0]["laws"], []
        for how in ("share25", "share60", "replay", "sequential", "opmix"):
            row = next((r for r in rows if (r["arm"], r["seed"]) == (f"{how}-{kind}", search["seed"])), None)
            if row is None:
                continue
            stage = row["stages"][0]
            told = {
                e: law["c"] + math.exp(sum(t * stage["mixture"].get(n, 0.0) for n, t in law["t"].items()))
                for e, law in laws.items()
            }
            pairs.append(
                (
                    stage["mixture"][FIRST],
                    statistics.fmean(told.values()),
                    loss(stage["judged"], list(laws), "valid"),
                    told,
                    stage["judged"],
                )
            )
        if len(pairs) < 2:
            continue
        names = list(laws)
        ranks = {"mean": agreement([p[1] for p in pairs], [p[2] for p in pairs])}
        ranks |= {n: agreement([p[3][n] for p in pairs], [p[4]["valid"][n] for p in pairs]) for n in names}
        found.append(
            {
                "objective": kind,
                "seed": search["seed"],
                "agreement": ranks,
                "of": len(pairs) * (len(pairs) - 1) // 2,
                "points": [{"share": p[0], "predicted": p[1], "measured": p[2]} for p in pairs],
            }
        )
        body += [[kind, str(search["seed"]), f"{p[0]:.0%}", f"{p[1]:.3f}", f"{p[2]:.3f}"] for p in pairs]
        of = found[-1]["of"]
        body.append(
            [
                kind,
                str(search["seed"]),
                "pairs in order",
                "; ".join(f"{n} {a} of {of}" for n, a in ranks.items()),
                "",
            ]
        )
    return table("Do short probes foretell?", ["objective", "seed", "new share", "predicted", "trained"], body), found


def agreement(a: Sequence[float], b: Sequence[float]) -> int:
    """Pairs that both put in the same order."""
    return sum((a[i] - a[j]) * (b[i] - b[j]) > 0 for i in range(len(a)) for j in range(i))
