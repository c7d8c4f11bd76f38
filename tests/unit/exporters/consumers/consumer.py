"""What the checks share: finding trainers, words as tokens, and the answer on standard output.

Each script beside this one runs in its own process as `python X_check.py EXPORTED_FILE CORPUS_FOLDER WORK_FOLDER`,
opens the exported file with the trainer's own code and prints the token share of every domain that it would train on.
Trainers pin each other's dependencies, so they are taken from the folders in OPMIX_TRAINERS, behind this environment.
"""

import importlib.machinery
import importlib.metadata
import json
import os
import sys
import types
from collections import Counter
from pathlib import Path

sys.path.extend(filter(None, os.environ.get("OPMIX_TRAINERS", "").split(os.pathsep)))

IDS = {"web": 1, "code": 2, "math": 3}
NAMES = {number: name for name, number in IDS.items()}
FILE, CORPUS, WORK = (Path(argument) for argument in sys.argv[1:4])


def documents(name):
    """Texts of a domain."""
    return [json.loads(line)["text"] for line in (CORPUS / f"{name}.jsonl").read_text().splitlines()]


def words(texts):
    """Tokens by domain."""
    count = Counter()
    for text in texts:
        parts = text.split()
        count[parts[0]] += len(parts)
    return count


def report(distribution, tokens, *, version=None, **more):
    """Print shares and the version of what was checked."""
    total = sum(tokens.values())
    shares = {name: tokens[name] / total for name in IDS}
    answer = {"version": version or importlib.metadata.version(distribution), "shares": shares, "tokens": total, **more}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def too_old(why):
    """Have the test skipped."""
    sys.stderr.write(why)
    sys.exit(77)


def bare_package(name):
    """A package whose `__init__` is not run, for parts of it that need less than the whole; its folder."""
    place = importlib.machinery.PathFinder.find_spec(name.split(".")[0], sys.path)
    folder = Path(place.submodule_search_locations[0]).joinpath(*name.split(".")[1:])
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
    return module, folder
