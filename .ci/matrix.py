"""Fast unit and contract tests under other kernels, thread counts and package versions: `make matrix`, or some legs of it by name.

    python .ci/matrix.py                    every leg
    python .ci/matrix.py default-1 oldest   two of them
    python .ci/matrix.py --slow default-1   slow tests too

Legs `CAPABILITY-THREADS` run .venv with torch's kernels for that processor; `oldest` and `newest` build environments of their own, from
constraints-oldest.txt and from nothing but torch's pin. What the processor lacks is skipped, and said. Exits 1 if a leg fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CAPABILITIES = ("default", "avx2", "avx512")  # slowest first: a processor that has one has those before it
LEGS = [f"{c}-{threads}" for c in CAPABILITIES for threads in (1, 2)] + ["oldest", "newest"]
# Without trl, whose pinned release wants newer companions: its tests skip.
TESTS_NEED = ["cvxpy", "hypothesis", "pytest>=8", "pytest-xdist>=3.6"]
OPMIX = ".[discover,gguf,tensorboard]"


def environment(name: str) -> Path:
    """The interpreter of .venv-oldest or .venv-newest, which is built when it is not there."""
    folder = ROOT / f".venv-{name}"
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if done.exists() and done.stat().st_mtime > (ROOT / "pyproject.toml").stat().st_mtime:
        return python
    oldest = ROOT / "constraints-oldest.txt"
    newest = folder / "torch.txt"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    newest.write_text("".join(re.findall(r"^torch==.*\n", (ROOT / "constraints.txt").read_text(), re.MULTILINE)))
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(oldest if name == "oldest" else newest)]
    subprocess.run([*install, "torch"], check=True, cwd=ROOT)
    extra = [] if name == "oldest" else ["--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run([*install, *extra, "-e", OPMIX, *TESTS_NEED], check=True, cwd=ROOT)
    done.touch()
    return python


def capability() -> int:
    """The best of CAPABILITIES that this processor has."""
    variables = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    code = "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"
    found = subprocess.run([sys.executable, "-c", code], env=variables, check=True, capture_output=True, text=True)
    return max((i for i, c in enumerate(CAPABILITIES) if c == found.stdout.strip()), default=0)


def run(leg: str, tests: list[str], best: int, marks: str) -> bool:
    """Run one leg; whether it passed."""
    python, variables, workers = Path(sys.executable), dict(os.environ), 2
    variables |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if leg in ("oldest", "newest"):
        python = environment(leg)
    else:
        kernels, threads = leg.split("-")
        if CAPABILITIES.index(kernels) > best:
            sys.stdout.write(f"{leg}: skipped, this processor has {CAPABILITIES[best]} at most\n")
            return True
        workers = 2 // int(threads)
        # Threads that wait awake take a core from whatever else runs here: a step of two such takes thirty times as long.
        variables |= {"OMP_NUM_THREADS": threads, "ATEN_CPU_CAPABILITY": kernels, "OMP_WAIT_POLICY": "passive"}
    command = [str(python), "-m", "pytest", "-n", str(workers), "--dist", "loadfile", "-m", marks, *tests]
    sys.stdout.write(f"{leg}: {' '.join(command[1:])}\n")
    sys.stdout.flush()
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=variables).returncode
    sys.stdout.write(f"{leg}: {'failed' if code else 'passed'} in {time.monotonic() - started:.0f} s\n")
    return code == 0


def main() -> int:
    """Run the legs that are asked for."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("legs", nargs="*", metavar="leg", help=f"of {', '.join(LEGS)} (default: all)")
    arguments.add_argument(
        "--tests", nargs="+", default=["tests/unit", "tests/contract"], help="files or folders (default: %(default)s)"
    )
    arguments.add_argument("--slow", action="store_true", help="with those that `make unit` leaves out")
    args = arguments.parse_args()
    marks = "not cluster" if args.slow else "not slow and not cluster"
    if unknown := set(args.legs) - set(LEGS):
        arguments.error(f"no leg is named {', '.join(sorted(unknown))}; expected some of {', '.join(LEGS)}")
    best = capability()
    failed = [leg for leg in args.legs or LEGS if not run(leg, args.tests, best, marks)]
    sys.stdout.write(f"failed: {', '.join(failed)}\n" if failed else "every leg passed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
