"""Programs of opmix in processes of their own that need not read torch anew: they are forked from one that has, and has computed nothing.

`command(...)` takes the place of `(sys.executable, "-m", "opmix", ...)`. What it starts hands its files, words, environment and folder
to the forked process, ends as that one ends, and when it is killed that one is killed too. What libraries read from the environment as
they are loaded (`OMP_*`, `HF_*`, `XDG_*`) is that of the session. A start from nothing is tested where it is what is tested.
"""

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

_FILES = 3
"""Standard input, output and error."""


@contextlib.contextmanager
def forking():
    """Start what programs are forked from; gives `command`: `subprocess.run(command("run", "life.yaml"))`, or `command("-c", CODE)`."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "socket")
        server = subprocess.Popen(
            [sys.executable, __file__, "serve", str(place)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        try:
            assert server.stdout.read(1) == b"."
            yield lambda *words: (sys.executable, "-I", "-S", __file__, "ask", str(place), *map(str, words))
        finally:
            server.terminate()
            server.communicate()


def _ask(place, *words):
    """Have `opmix WORDS` done, and end as it ends."""
    told = {"words": words, "environment": dict(os.environ), "folder": str(Path.cwd())}
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(place)
        socket.send_fds(line, [b"."], range(_FILES))
        line.sendall(json.dumps(told).encode() + b"\n")
        code = int(line.makefile().readline())
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _serve(place):
    """Read what programs need, then fork one for each that asks."""
    import transformers

    from opmix.cli import task
    from opmix.cli.app import app

    assert app
    assert task._workers()
    assert transformers.Trainer
    assert transformers.LlamaForCausalLM
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        os.write(1, b".")
        while True:
            line, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return _keep(line)
            line.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _keep(line):
    """Fork the program; whoever asked hears how it ended, and takes it along when killed."""
    _, files, *_ = socket.recv_fds(line, 1, _FILES)
    told = json.loads(line.makefile().readline())
    program = os.fork()
    if program == 0:
        line.close()
        return _become(files, **told)
    for file in files:
        os.close(file)
    ready, _, _ = select.select([line, os.pidfd_open(program)], [], [])
    if line in ready:
        os.kill(program, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        line.sendall(f"{code}\n".encode())
    os._exit(0)


def _become(files, words, environment, folder):
    """Be `python -m opmix WORDS`, or `python -c CODE`."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[1:] = words
    if words[0] == "-c":
        exec(words[1], {"__name__": "__main__"})
    else:
        runpy.run_module("opmix", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    {"ask": _ask, "serve": _serve}[sys.argv[1]](*sys.argv[2:])
