"""``specpolicy serve``: whole, and its mistakes in one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_fakes import SECRET, SPEC, observation, tiny_policy, whole

from specpolicy import samplers
from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.serving.auth import TOKEN_VARIABLE
from specpolicy.serving.batching import BatchedPolicy
from specpolicy.serving.client import Client
from specpolicy.serving.continuous import ContinuousBatch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_policy().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["checkpoint=/nowhere"], "no checkpoint at /nowhere"),
        (["host=0.0.0.0"], f"can be reached from other machines, so clients must know a token.*{TOKEN_VARIABLE}"),
        (["token=abc"], f"can be read by every user.*{TOKEN_VARIABLE}"),
        (["+token=abc"], "can be read by every user"),
        (["token_file=/nowhere"], "the token file /nowhere cannot be read"),
        (["port=seven"], "port='seven'; expected a whole number"),
        (["max_batch=0"], "max_batch=0; expected a whole number from 1"),
        (["tls_cert=x.pem"], "tls_cert and tls_key go together"),
        (["sampler=warp"], "unknown sampler 'warp'"),
        (["speed=9"], "speed"),
    ],
)
def test_mistakes_are_answered_in_one_line(capsys: pytest.CaptureFixture[str], overrides: list[str], says: str) -> None:
    assert main(["serve", *overrides]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(says, error) and "Traceback" not in error


def test_a_certificate_that_is_missing(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    overrides = [f"checkpoint={checkpoint}", "sampler=ddim2", "tls_cert=/a.pem", "tls_key=/b.pem"]
    assert main(["serve", *overrides]) == EXIT_USER_ERROR
    assert "tls_cert=/a.pem and tls_key=/b.pem cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "continuous"),
    [([], False), (["continuous=true"], True), (["continuous=true", "compile=plain"], False)],
    ids=["batches", "continuous", "cannot be suspended"],
)
def test_from_end_to_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, checkpoint: Path, overrides: list[str],
    continuous: bool,
) -> None:  # fmt: skip
    """The command in this process; the robot, and then the signal, come from a thread."""
    monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    seen: dict[str, Any] = {}
    joined, join = list[Any](), ContinuousBatch.join
    monkeypatch.setattr(ContinuousBatch, "join", lambda self, key, job: (joined.append(key), join(self, key, job))[1])

    def robot() -> None:
        output, errors, deadline = "", "", time.monotonic() + 60
        while not (found := re.search(r"at (ws://\S+); Ctrl-C", output)) and time.monotonic() < deadline:
            time.sleep(0.01)
            heard = capsys.readouterr()
            output, errors = output + heard.out, errors + heard.err
        try:
            seen["said"], seen["warned"] = output, errors
            assert found is not None
            with Client(found[1], token=SECRET, timeout_s=60) as client:
                seen["policy"] = client.metadata["policy"]
                client.reset(seed=2)
                seen["actions"] = client.infer(observation(0.3)).actions
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=robot)
    thread.start()
    command = ["serve", f"checkpoint={checkpoint}", "sampler=ddim2", "port=0", "max_batch=2", *overrides]
    assert main(command) == 0
    thread.join(60)
    assert f"serving {checkpoint} (echo, approximate) at ws://127.0.0.1:" in seen["said"]
    assert seen["policy"]["task"] == "echo" and seen["policy"]["exact"] is False
    policy = tiny_policy()
    engine = BatchedPolicy(policy, samplers.ddim(policy.scheduler, 2))
    history = {name: np.full((SPEC.horizon, dim), 0.3, np.float32) for name, dim in SPEC.keys.items()}
    [expected] = engine.run([whole(history, 2)])
    np.testing.assert_allclose(seen["actions"], expected.actions, rtol=0, atol=1e-6 if overrides else 0)
    assert len(joined) == continuous
    assert ("continuous=true has no effect: " in seen["warned"]) == (bool(overrides) and not continuous)


def test_the_command_is_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "serve answer robots over a websocket" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_the_example_runs(checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "remote_policy.py"), str(checkpoint)],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.count(" evaluations, ") == 3 and "network" in done.stdout
