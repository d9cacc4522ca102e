"""Workers of a program of its own, since a process has one nursery only; says what they say, as JSON."""

from __future__ import annotations

import json
import multiprocessing.forkserver
import os
import threading
import time
from typing import Any

from specpolicy.rollout.workers import SubprocessWorker

print("the program runs", flush=True)


class Teller:
    """Tells in which process it is, and which one was warmed up."""

    def __call__(self, request: Any) -> Any:
        return {"me": os.getpid(), "parent": os.getppid(), "warm": os.environ.get("WARM")}

    def close(self) -> None:
        pass


def fail() -> None:
    os.environ["WARM"] = str(os.getpid())
    raise ArithmeticError("a worker will meet this, too")


def start_a_thread() -> None:
    os.environ["WARM"] = str(os.getpid())
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def ask(warm_up: Any) -> list[Any]:
    workers = [SubprocessWorker(Teller, 60, warm_up=warm_up) for _ in range(2)]
    for worker in workers:
        worker.send("?")
    told = [worker.receive() for worker in workers]
    for worker in workers:
        worker.close()
    return told


if __name__ == "__main__":
    safe = ask(fail)
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # the next one is another
    print(json.dumps([safe, ask(start_a_thread)]))
