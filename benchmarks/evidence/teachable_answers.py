"""What the students of `teachable.py` say: right in the form that was taught, right in whatever form, and how their answers begin.

    python benchmarks/evidence/teachable_answers.py MODEL=FOLDER ... --model $GGUF --data shared/data --out runs/evidence/teachable-small

Folders are saved models of lives (`lives/ARM/seed-0/STAGE/model`). The questions are those that `teachable.py --small` scores.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import record
from teachable_world import FIRST, SKILLS, SMALL, World, load_model

from opmix.cli.console import quiet_libraries
from opmix.scores import extractor_of
from opmix.scores.generate import greedy_answers
from opmix.scores.task import question_and_answer
from opmix.training.stage_data import stop_ids

BEGINS = 3
"""Words of an answer that are counted."""


def in_any_form(skill: str, answer: str) -> str | None:
    """The first call, in a list or not; the first yes, no or maybe, wherever it stands."""
    if skill == FIRST:
        found = extractor_of("json")(answer)
        return found if found is None or found.startswith("[") else f"[{found}]"
    said = re.search(r"\b(yes|no|maybe)\b", answer, re.IGNORECASE)
    return said and said.group().lower()


def judged(world: World, folder: Path) -> dict[str, Any]:
    """By skill: right answers in the taught form and in any, answers, and how most of them begin."""
    model, found = load_model(folder, dtype="float32", device=world.device).to(world.reading), {}
    for skill, extractor in SKILLS.items():
        domain, strict = world.judged.domains[skill], extractor_of(extractor)
        num = min(world.sizes.items, domain.test.num_documents)
        chosen = (
            ((np.arange(num) + 0.5) * domain.test.num_documents / num).astype(int).tolist()
        )  # as `score_split` does
        pairs = [question_and_answer(domain.test, i) for i in chosen]
        said = greedy_answers(
            model,
            [question for question, _ in pairs],
            stop_ids=stop_ids(world.tokenizer, {skill: domain.train}),
            max_new_tokens=world.sizes.scored,
            batch_size=world.together,
        )
        texts = [
            tuple(world.tokenizer.decode(ids, skip_special_tokens=True) for ids in (a, b))
            for a, (_, b) in zip(said, pairs, strict=True)
        ]
        right = [strict(a) is not None and strict(a) == strict(b) for a, b in texts]
        meant = [in_any_form(skill, a) is not None and in_any_form(skill, a) == in_any_form(skill, b) for a, b in texts]
        begins = Counter(" ".join(a.split()[:BEGINS]) for a, _ in texts).most_common(1)[0]
        found[skill] = {
            "right": sum(right),
            "any_form": sum(meant),
            "total": num,
            "begins": {"with": begins[0], "answers": begins[1]},
            "answers": [a for a, _ in texts],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "teachable_answers.json")
    args = parser.parse_args()
    quiet_libraries()
    world = World(out=args.out, sizes=SMALL, device=args.device, data=args.data, model=args.model)
    found = {}
    print("| model | " + " | ".join(f"{s}: taught form | any form | most begin" for s in SKILLS) + " |", flush=True)
    print("|---|" + "---|" * 3 * len(SKILLS), flush=True)
    for told in args.models:
        name, folder = told.split("=", 1)
        found[name] = judged(world, Path(folder))
        cells = [
            f"{s['right']} of {s['total']} | {s['any_form']} | {s['begins']['answers']} `{s['begins']['with']}`"
            for s in found[name].values()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    record(args.results, {"sizes": str(world.sizes), "models": found})


if __name__ == "__main__":
    main()
