"""Worker processes are forked from one server that has imported what they share."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from specpolicy.rollout.workers import LocalWorker, WorkerError, make_workers

PROGRAM = Path(__file__).with_name("worker_program.py")


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a fork server")
def test_workers_share_what_was_imported_and_do_not_run_the_program_again() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROGRAM.parent), *sys.path])}
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=True, env=environment)
    first, *others = done.stdout.splitlines()
    assert first == "the program runs" and len(others) == 1
    one, two = json.loads(others[0])
    assert one["me"] != two["me"] and one["parent"] == two["parent"]
    assert one["loaded"] == two["loaded"] == one["parent"]  # imported once, before either was forked
    assert one["sigint"] and two["sigint"]  # Ctrl-C is for the parent, from the first moment on


class Doubler:
    """Doubles numbers."""

    def __call__(self, request: int) -> int:
        return 2 * request

    def close(self) -> None:
        pass


@pytest.mark.parametrize("in_process", [True, False])
def test_what_a_handler_raises_is_an_answer(in_process: bool) -> None:
    (worker,) = make_workers(Doubler, 1, 60, in_process=in_process)
    try:
        worker.send(3)
        assert worker.receive() == 6
        worker.send(None)
        answer = worker.receive()
        assert isinstance(answer, WorkerError) and "TypeError" in answer.error
        worker.send(4)
        assert worker.receive() == 8
    finally:
        worker.close()
    assert isinstance(worker, LocalWorker) == in_process


class Leaves(Doubler):
    """Ends the program in the place of an answer, as a simulator does that has lost its display."""

    def __call__(self, request: int) -> int:
        return super().__call__(request) if request else sys.exit("no display")


@pytest.mark.parametrize("in_process", [True, False])
def test_a_handler_that_leaves_fails_its_request_alone(in_process: bool) -> None:
    (worker,) = make_workers(Leaves, 1, 60, in_process=in_process)
    try:
        worker.send(0)
        answer = worker.receive()
        assert isinstance(answer, WorkerError) and answer.died != in_process
        worker.send(4)
        assert worker.receive() == 8
    finally:
        worker.close()
