"""Workers of a program of its own, since a process has one nursery only; says what they say, as JSON."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

from specpolicy.workers import Worker

print("the program runs", flush=True)


class Teller:
    """Tells in which process it is, and which one was warmed up."""

    def __call__(self, request: Any) -> Any:
        return {"me": os.getpid(), "parent": os.getppid(), "warm": os.environ.get("WARM")}

    def close(self) -> None:
        pass


def warm_up() -> None:
    os.environ["WARM"] = str(os.getpid())


def start_a_thread() -> None:
    warm_up()
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def fail() -> None:
    warm_up()
    raise ArithmeticError("cold")


if __name__ == "__main__":
    import sys

    workers = [Worker(Teller, 60, warm_up=globals()[sys.argv[1]]) for _ in range(2)]
    for worker in workers:
        worker.send("?")
    print(json.dumps([worker.receive() for worker in workers]))
    for worker in workers:
        worker.close()
