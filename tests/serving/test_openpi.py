"""openpi's client, unmodified from its package, against this server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from openpi_environment import openpi_python
from serving_fakes import SECRET, EchoEngine, numbers, running

from specpolicy.serving.auth import Token

pytestmark = pytest.mark.slow  # makes an environment with openpi's client


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What openpi's client saw in one visit."""
    program = str(Path(__file__).with_name("openpi_program.py"))
    environment = os.environ | {"no_proxy": "*"}
    python = openpi_python()
    with running(EchoEngine(), Token(SECRET, "test")) as server:
        done = subprocess.run(
            [str(python), program, "127.0.0.1", str(server.port), SECRET],
            capture_output=True, text=True, timeout=120, env=environment,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_has_the_older_numpy(seen: dict[str, Any]) -> None:
    assert seen["numpy"].startswith("1.")


def test_it_needs_its_key(seen: dict[str, Any]) -> None:
    assert "401" in seen["without key"] and "401" in seen["wrong key"]


def test_it_is_told_about_the_policy(seen: dict[str, Any]) -> None:
    assert seen["metadata"]["server"] == "specpolicy" and seen["metadata"]["policy"]["task"] == "echo"


def test_it_gets_actions_and_timings(seen: dict[str, Any]) -> None:
    assert seen["reset"] == {"seed": 7}
    assert seen["dtype"] == "float32"
    assert seen["first"]["actions"] == [[1, 1, 1], [1, 1, 1], numbers(7, 1)[0]]
    assert set(seen["first"]["server_timing"]) == {"infer_ms", "queue_ms", "server_ms"}
    assert (seen["first"]["passes"], seen["first"]["acceptance"]) == (5, 0.75)


def test_it_raises_our_errors_and_goes_on(seen: dict[str, Any]) -> None:
    assert seen["mistake"].startswith("RuntimeError: Error in inference server:\nobservation['pose'] has shape (2,)")
    assert "Unsupported dtype: object" in seen["unsendable"], "its own packer refuses"
    assert "failed with ZeroDivisionError" in seen["breaks"] and "Traceback" not in seen["breaks"]
    # the observation that broke the policy was remembered, and random numbers were drawn only where one was answered
    assert seen["with more"]["actions"] == [[-13, -13, -13], [2, 2, 2], numbers(7, 2)[1]]
    assert seen["with more"]["ignored"] == ["prompt", "state"]


def test_its_chunk_broker_plays_our_chunks(seen: dict[str, Any]) -> None:
    assert seen["broker"][:3] == [[2, 2, 2], [5, 5, 5], numbers(7, 3)[2]]
    assert seen["broker"][3] == [5, 5, 5], "the next chunk"
