"""A policy with a camera through the commands: episodes, control loop, calibration, and a server asked with bytes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specpolicy import samplers
from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.config import compose, to_container
from specpolicy.control.inference import episode_generator
from specpolicy.interop.loading import load_policy
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.normalizer import MinMaxNormalizer
from specpolicy.serving.auth import TOKEN_VARIABLE
from specpolicy.serving.client import Client

needs_pusht = pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="needs gym-pusht")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy for PushT from images, small enough to play in no time."""
    torch.manual_seed(0)
    small = [
        "policy.network.width=32",
        "policy.network.blocks=1",
        "policy.network.embed=16",
        "policy.encoder.features=8",
    ]
    cfg = compose("train", ["task=pusht_image", "policy=image", *small, "policy.scheduler.num_train_timesteps=10"])
    policy = DiffusionPolicy(PolicyConfig.for_task(to_container(cfg.task), to_container(cfg.policy)))
    policy.action_normalizer = MinMaxNormalizer(torch.zeros(2), torch.full((2,), 512.0))
    folder = tmp_path_factory.mktemp("camera") / "checkpoint"
    policy.save_pretrained(folder)
    return folder


@pytest.mark.slow
@needs_pusht
def test_it_plays_is_calibrated_and_controls(checkpoint: Path, tmp_path: Path) -> None:
    common = ["task=pusht_image", f"checkpoint={checkpoint}", "num_envs=1", "seeds=[300]"]
    out = tmp_path / "rollout"
    assert main(["rollout", *common, "sampler=ddim2", f"out={out}", "latency_calls=1", "video=[]"]) == 0
    assert json.loads((out / "table.json").read_text())
    with np.load(out / "observations.npz") as kept:
        assert kept["image"].dtype == np.uint8 and kept["image"].shape[1:] == (2, 96, 96, 3)
    recorded = [f"observations={out / 'observations.npz'}", f"out={tmp_path / 'chains'}"]
    calibrate = ["calibrate", f"checkpoint={checkpoint}", "num_inference_steps=10", "chains=50", *recorded]
    assert main(calibrate) == 0
    assert (checkpoint / "calibration-10.safetensors").is_file()
    executors = "executor=[asynchronous,lockstep]"
    control = ["control", *common, "sampler=ddim2", executors, "latency=50", "max_ticks=20", "timeline=false"]
    assert main([*control, f"out={tmp_path / 'control'}"]) == 0
    assert "asynchronous" in (tmp_path / "control" / "table.md").read_text()


def test_a_server_is_asked_with_bytes(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    image = np.random.default_rng(0).integers(256, size=(96, 96, 3), dtype=np.uint8)
    seen: dict[str, Any] = {}

    def robot() -> None:
        output, deadline = "", time.monotonic() + 60
        while not (found := re.search(r"at (ws://\S+); Ctrl-C", output)) and time.monotonic() < deadline:
            time.sleep(0.01)
            output += capsys.readouterr().out
        try:
            assert found is not None
            with Client(found[1], timeout_s=60) as client:
                seen["observations"] = client.metadata["policy"]["observations"]
                client.reset(seed=2)
                seen["actions"] = client.infer({"image": image, "agent_pos": np.array([100.0, 200.0])}).actions
                with pytest.raises(Exception, match="has type float64; expected uint8"):
                    client.infer({"image": image / 255, "agent_pos": np.array([100.0, 200.0])})
                seen["refused"] = True
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=robot)
    thread.start()
    assert main(["serve", f"checkpoint={checkpoint}", "sampler=ddim2", "port=0", "max_batch=1"]) == 0
    thread.join(60)
    assert seen["observations"] == {"image": [96, 96, 3], "agent_pos": 2} and seen["refused"]
    policy = load_policy(checkpoint)
    history = {"image": image[None, None].repeat(2, 1), "agent_pos": np.array([[[100.0, 200.0]] * 2])}
    expected = policy.predict_action(history, samplers.ddim(policy.scheduler, 2), [episode_generator(2)])
    np.testing.assert_allclose(seen["actions"], expected.actions[0], rtol=1e-4, atol=1e-2)


def test_a_message_limit_below_one_observation_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = ["max_message_bytes=40000", "sampler=ddim2", "port=0"]
    assert main(["serve", f"checkpoint={checkpoint}", *limit]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert "max_message_bytes=40000 is less than the policy's observation takes" in error and error.count("\n") == 1
