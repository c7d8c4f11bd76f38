"""The README followed word for word, in a fresh clone, on text that nobody has seen: every block is run, any deviation fails.

    python benchmarks/newcomer.py [--commit HEAD] [--only TEXT] [--seed 1] [--make [demo test]] [--keep DIR]

Every fenced block of README.md must be one that this script knows how to follow; a line that it does not know is a deviation too, so
the README cannot promise what is not tried. `--make` also runs its lines of `make`, or those named, which build an environment
(network) and see nothing of the one that runs this script. What the README says of the manners is held as well: an error is told
without a traceback, a placeholder asks no hub, Ctrl-C has a word.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from opmix.domain import PLACEHOLDER
from opmix.testing import tiny_model, tiny_tokenizer, toy_documents

ROOT = Path(__file__).parents[1]
NAMES = ("web", "code", "math")
PATIENCE = 1800.0
"""Seconds for one command of the README."""
MAKE_PATIENCE = 4 * PATIENCE
"""The same for one line of `make`."""
NO_WAIT = 180.0
"""Seconds in which what asks no network is over, also on a busy machine; with retries it takes longer, and says so."""
TINY = """\
architecture: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
  num_key_value_heads: 2, max_position_embeddings: 64, tie_word_embeddings: true}
tokenizer: {vocab_size: 300}
domains: {web: web/*.jsonl.gz, code: code/*.parquet, math: math.jsonl.zst}
sequence_length: 32
trainer: {learning_rate: 1e-2, per_device_train_batch_size: 4}
probes: {steps: 8, rank: 2}
proxies: {eval_sequences: 8}
evaluation: {sequences: 8}
stages:
- {name: base, domains: [web, code], mixture: uniform, tokens: 4096}
- {name: math, add: [math], tokens: 4096}
"""


class Deviation(Exception):  # noqa: N818 - what it is, not what went wrong inside
    """The README says one thing and something else happens."""


class Newcomer:
    """Somebody in an empty folder, with a clone beside it."""

    def __init__(self, clone: Path, folder: Path, seed: int) -> None:
        self.clone, self.folder = clone, folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(clone / "src"),
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "COLUMNS": "100",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self._fresh_text(seed)

    def _fresh_text(self, seed: int) -> None:
        """What the README's examples name: text of three domains in their formats, a checkpoint, and runs of somebody's."""
        import pandas
        import zstandard

        rows = {n: [{"text": t} for t in toy_documents(n, 4000, seed=seed)] for n in NAMES}
        lines = {n: "".join(json.dumps(row) + "\n" for row in told).encode() for n, told in rows.items()}
        for name in ("web", "code", "dev", "my-data"):
            (self.folder / name).mkdir()
        (self.folder / "web" / "0.jsonl.gz").write_bytes(gzip.compress(lines["web"]))
        pandas.DataFrame(rows["code"]).to_parquet(self.folder / "code" / "0.parquet")
        (self.folder / "math.jsonl.zst").write_bytes(zstandard.compress(lines["math"]))
        manual = toy_documents("manual", 1000, seed=seed)
        (self.folder / "dev" / "manual.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in manual))
        for name in NAMES:
            (self.folder / "my-data" / f"{name}.jsonl").write_bytes(lines[name])
        tokenizer = tiny_tokenizer([row["text"] for told in rows.values() for row in told], vocab_size=400)
        model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024, num_hidden_layers=1)
        for part in (model, tokenizer):
            part.save_pretrained(self.folder / "my-checkpoint")
        (self.folder / "lifecycle.yaml").write_text(TINY)
        (self.folder / "compare.yaml").write_text(TINY + "methods: {op_mix: {}, uniform: {}}\n")
        shares = [(0.1 * i, 1 - 0.1 * i) for i in range(1, 10)]
        ratios = "".join(f"{i},{a:.1f},{b:.1f}\n" for i, (a, b) in enumerate(shares))
        losses = "".join(f"{i},{3 + (1 - a) ** 2},{2 + (1 - b) ** 2}\n" for i, (a, b) in enumerate(shares))
        (self.folder / "ratios.csv").write_text("run,web,code\n" + ratios)
        (self.folder / "losses.csv").write_text("run,web_loss,code_loss\n" + losses)

    def call(
        self, command: list[str], *, code: int = 0, within: float = PATIENCE, env: dict[str, str] | None = None
    ) -> str:
        """Run a command in the newcomer's folder, in their environment or another; its output.

        Raises:
            Deviation: Another exit code, a traceback, or no end.
        """
        shown, begun = shlex.join(command), time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self.environment if env is None else env,
                capture_output=True,
                text=True,
                timeout=within,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Deviation(f"{shown}: not over after {within:.0f} s") from error
        told = done.stdout + done.stderr
        if done.returncode != code or "Traceback" in told:
            raise Deviation(f"{shown}: exit code {done.returncode}, expected {code}\n{told[-3000:]}")
        print(f"  ok  {shown}  ({time.monotonic() - begun:.0f} s)", flush=True)
        return told

    def opmix(self, *words: str, code: int = 0, within: float = PATIENCE) -> str:
        """The same of `opmix`."""
        return self.call([sys.executable, "-m", "opmix", *words], code=code, within=within)

    def make(self, target: str) -> str:
        """`make TARGET` in the clone, with the `python3` that a login shell finds: what it needs, it must install itself."""
        ours = str(Path(sys.executable).parent)
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")}
        env["PATH"] = os.pathsep.join(place for place in env["PATH"].split(os.pathsep) if place != ours)
        return self.call(["make", "-C", str(self.clone), target], within=MAKE_PATIENCE, env=env)


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def follow_python(who: Newcomer, block: str) -> None:
    """The example, unchanged; it must print a mixture of its own domains in few lines, and the model must stay as it was."""
    before = (who.folder / "my-checkpoint" / "model.safetensors").read_bytes()
    told = who.call([sys.executable, "-c", block])
    shares = [line for line in told.splitlines() if line.startswith("mixture (")]
    if len(shares) != 1 or not all(name in shares[0] for name in NAMES):
        raise Deviation(f"the Python example printed no mixture of {NAMES}:\n{told[-2000:]}")
    if (who.folder / "my-checkpoint" / "model.safetensors").read_bytes() != before:
        raise Deviation("the Python example changed the checkpoint")
    ast.parse(block)


def follow_make(who: Newcomer, block: str, targets: Sequence[str]) -> None:
    """Its lines of those targets, in order; every one must name a target that this script knows."""
    for line in block.splitlines():
        target = shlex.split(line.partition("#")[0])[1]
        if target not in MADE:
            raise Deviation(f"{line!r}: nothing here knows how to follow that")
        if target in targets:
            MADE[target](who, who.make(target))


def follow_console(who: Newcomer, block: str) -> None:
    """Every line, in order; RUN is the run folder that `opmix search` left."""
    for line in filter(None, (raw.partition("#")[0].strip() for raw in block.splitlines())):
        words = shlex.split(line.replace("RUN", "runs/search"))
        verb = " ".join(words[:2])
        if verb not in AFTER:
            raise Deviation(
                f"{line!r}: nothing here knows how to follow that; teach benchmarks/newcomer.py, or drop it"
            )
        told = who.opmix(*words[1:])
        AFTER[verb](who, told)


def _wrote(*names: str) -> Callable[[Newcomer, str], None]:
    def check(who: Newcomer, told: str) -> None:
        if missing := [name for name in names if not (who.folder / name).exists()]:
            raise Deviation(f"{missing[0]} was not written:\n{told[-1500:]}")

    return check


def _said(*parts: str) -> Callable[[Newcomer, str], None]:
    def check(who: Newcomer, told: str) -> None:
        if missing := [part for part in parts if part not in told]:
            raise Deviation(f"{missing[0]!r} was not said:\n{told[-1500:]}")

    return check


def _after_init(who: Newcomer, told: str) -> None:
    """The file asks for a model; the newcomer puts theirs there, and less work, as its comments say."""
    _wrote("search.yaml")(who, told)
    place = who.folder / "search.yaml"
    if PLACEHOLDER not in place.read_text():
        raise Deviation("search.yaml names no placeholder for the model, and no model either")
    refused = who.opmix("search", "search.yaml", code=1, within=NO_WAIT)
    if "Retrying" in refused or "huggingface.co" in refused:
        raise Deviation(f"a placeholder was asked of the hub:\n{refused[-1500:]}")
    text = place.read_text().replace(PLACEHOLDER, "my-checkpoint")
    place.write_text(re.sub(r"steps: \d+", "steps: 10", text))


def _after_search(who: Newcomer, told: str) -> None:
    _wrote("runs/search/mixture.json", "runs/search/report.html", "runs/search/tables/proxies.csv")(who, told)
    records = {p: p.read_bytes() for p in (who.folder / "runs" / "search" / "steps").glob("*.json")}
    who.opmix("search", "search.yaml")  # running the same command again resumes
    if not records or any(p.read_bytes() != content for p, content in records.items()):
        raise Deviation("the same search again did work again")


AFTER: dict[str, Callable[[Newcomer, str], None]] = {
    "opmix init": _after_init,
    "opmix validate": _said("ready"),
    "opmix search": _after_search,
    "opmix run": _wrote("runs/lifecycle/life.json", "runs/lifecycle/report.html"),
    "opmix status": _said("done", "finished"),
    "opmix verify": _wrote("runs/search/verification.json"),
    "opmix export": _said("datasets:"),
    "opmix compare": _wrote("runs/compare/compare.json", "runs/compare/report.html"),
    "opmix fit": _said("web", "code"),
}


def _after_demo(who: Newcomer, told: str) -> None:
    """The proposal against uniform, and a report to look at."""
    _said("uniform", "predicted", "measured")(who, told)
    page = who.clone / "demo-run" / "report.html"
    if not page.is_file() or str(page.relative_to(who.clone)) not in told:
        raise Deviation(f"{page} was not written, or not named:\n{told[-1500:]}")


MADE: dict[str, Callable[[Newcomer, str], None]] = {"demo": _after_demo, "test": _said(" passed")}


def _heed_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def manners(who: Newcomer) -> None:
    """What nobody should meet: a version that is not told, a traceback for a typo, a Ctrl-C without a word, a long print."""
    _said("opmix ")(who, who.opmix("--version", within=NO_WAIT))
    who.opmix("search", "nowhere.yaml", code=1, within=NO_WAIT)
    who.opmix("serach", code=2, within=NO_WAIT)
    short = "import opmix; r = opmix.fit_runs(__import__('pathlib').Path('ratios.csv'), __import__('pathlib').Path('losses.csv')); print(r)"
    lines = who.call([sys.executable, "-c", short]).strip().splitlines()
    if len(lines) > 6:
        raise Deviation(f"print(result) is {len(lines)} lines")
    process = subprocess.Popen(
        [sys.executable, "-m", "opmix", "run", "lifecycle.yaml", "--out", "runs/stopped"],
        cwd=who.folder,
        env=who.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )
    until = time.monotonic() + PATIENCE
    while not (who.folder / "runs" / "stopped" / "events.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=PATIENCE)[0]
    if process.returncode != 130 or "the same command goes on" not in told or "Traceback" in told:
        raise Deviation(f"Ctrl-C ended with {process.returncode} and said:\n{told[-1500:]}")
    who.opmix("run", "lifecycle.yaml", "--out", "runs/stopped")
    print("  ok  Ctrl-C has a word, and the same command goes on", flush=True)


def links(clone: Path, text: str) -> None:
    """Every page that the README names is there."""
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        if not (clone / target).exists():
            raise Deviation(f"README links to {target}, which is not there")


def main() -> None:
    """Follow it all; the exit code is 1 where something deviates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--only", default="", help="blocks that hold this text, and no manners")
    parser.add_argument("--seed", type=int, default=1, help="of the text")
    parser.add_argument("--make", nargs="*", choices=list(MADE), help="also `make demo` and `make test`, or one")
    parser.add_argument("--keep", type=Path, help="folder to leave everything in")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as temporary:
        place = asked.keep or Path(temporary)
        clone, folder = place / "clone", place / "mine"
        folder.mkdir(parents=True)
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
        commit = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", asked.commit], check=True, capture_output=True, text=True
        )
        subprocess.run(["git", "-C", str(clone), "checkout", "--quiet", commit.stdout.strip()], check=True)
        try:
            made = () if asked.make is None else asked.make or list(MADE)
            follow(Newcomer(clone, folder, asked.seed), (clone / "README.md").read_text(), asked.only, make=made)
        except Deviation as found:
            print(f"DEVIATION: {found}", flush=True)
            raise SystemExit(1) from found
    print("the README holds", flush=True)


def follow(who: Newcomer, text: str, only: str, *, make: Sequence[str] = ()) -> None:
    """Every block of the README; of its lines of `make` those of the targets in `make`.

    Raises:
        Deviation: Of anything.
    """
    links(who.clone, text)
    for language, block in blocks(text):
        if only not in block:
            continue
        if language == "python":
            follow_python(who, block)
        elif block.lstrip().startswith("opmix "):
            follow_console(who, block)
        elif block.lstrip().startswith("make "):
            follow_make(who, block, make)
        else:
            raise Deviation(f"a block that nothing here knows how to follow:\n{block}")
    if not only:
        manners(who)


if __name__ == "__main__":
    main()
