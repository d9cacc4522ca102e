"""Python processes that start quickly: forked from one that has imported torch and diffusers, and nothing of ours.

Each runs in a ``__main__`` of its own, as if it had been started afresh, but for the seconds that these imports take.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any


def run_python(code: str, file: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end.

    Args:
        code: its text.
        file: where it is from, as for a script; None: as with ``python -c``.
        cwd: working directory; None: that of the tests.

    Returns:
        Status, output and errors; standard input is empty.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder, "out"), Path(folder, "err")
        request = {"code": code, "file": str(file or ""), "cwd": str(cwd or Path.cwd())}
        host = _host()
        assert host.stdin is not None and host.stdout is not None
        print(json.dumps(request | {"out": str(out), "err": str(error)}), file=host.stdin, flush=True)
        status = int(host.stdout.readline())
        return subprocess.CompletedProcess([file or "-c"], status, out.read_text(), error.read_text())


@functools.cache
def _host() -> subprocess.Popen[str]:
    host = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(host.communicate)  # its input ends, and so does it
    return host


def _become(request: dict[str, Any]) -> None:
    """Run a program in this process, which was forked for it."""
    for descriptor, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
    os.chdir(request["cwd"])
    sys.argv = [request["file"] or "-c"]
    sys.path[0] = str(Path(request["file"]).parent) if request["file"] else ""
    main = sys.modules["__main__"] = ModuleType("__main__")
    if request["file"]:
        main.__file__ = request["file"]
    exec(compile(request["code"], request["file"] or "<string>", "exec"), main.__dict__)


def _serve() -> None:
    """Fork a process for each line of standard input, and print its status."""
    import diffusers.schedulers
    import gymnasium
    import hydra
    import numpy
    import torch

    assert diffusers.schedulers and gymnasium and hydra and numpy and torch
    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            _become(json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    _serve()
