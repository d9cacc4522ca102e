"""A program with workers of its own: prints in which processes they live, as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from specpolicy.rollout.workers import SubprocessWorker

print("the program runs", flush=True)


class Teller:
    """Tells in which process it is, what was imported before it was forked, and whether Ctrl-C would reach it."""

    def __call__(self, request: Any) -> Any:
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return {"me": os.getpid(), "parent": os.getppid(), "loaded": getattr(sys, "preloaded", None), "sigint": blocked}

    def close(self) -> None:
        pass


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    workers = [SubprocessWorker(Teller, 60, preload=["preloaded_module"]) for _ in range(2)]
    for worker in workers:
        worker.send("?")
    told = [worker.receive() for worker in workers]
    for worker in workers:
        worker.close()
    print(json.dumps(told))
