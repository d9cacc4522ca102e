"""Policies loaded from other packages' checkpoints answer as the packages did: arrays recorded with their own code.

The committed checkpoints are always tested; a folder with more of them is, where SPECPOLICY_FIXTURES names one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import FIXTURES
from numpy.typing import NDArray
from torch import Tensor

import specpolicy
from specpolicy import ReverseProcess, SampleResult
from specpolicy.policies import DiffusionPolicy

MORE = os.environ.get("SPECPOLICY_FIXTURES")


@dataclass(frozen=True)
class Recorded:
    """A checkpoint and what its package answered."""

    name: str
    checkpoint: Path
    arrays: Path

    @cached_property
    def reference(self) -> dict[str, NDArray[Any]]:
        with np.load(self.arrays) as file:
            return {name: file[name] for name in file.files}

    @property
    def observation(self) -> dict[str, NDArray[Any]]:
        named = {k.removeprefix("obs/"): v for k, v in self.reference.items() if k.startswith("obs/")}
        return named or {"obs": self.reference["obs"]}


def _recorded() -> Iterator[Recorded]:
    for arrays in sorted(FIXTURES.glob("*.npz")):
        files = [path for path in FIXTURES.glob(f"{arrays.stem}*") if path != arrays]
        yield Recorded(arrays.stem, files[0], arrays)
    for arrays in sorted(Path(MORE).glob("*/*/reference.npz")) if MORE else []:
        folder = arrays.parent
        checkpoint = next(iter([*folder.glob("*.pth"), *folder.glob("*.ckpt"), *folder.glob("pretrained_model")]))
        yield Recorded(f"{folder.parent.name}/{folder.name}", checkpoint, arrays)


@pytest.fixture(scope="module", params=list(_recorded()), ids=lambda recorded: recorded.name)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return request.param


@pytest.fixture(scope="module", params=["loaded", "converted"])
def policy(
    request: pytest.FixtureRequest, recorded: Recorded, tmp_path_factory: pytest.TempPathFactory
) -> DiffusionPolicy:
    policy = specpolicy.load_policy(recorded.checkpoint)
    if request.param == "converted":
        folder = tmp_path_factory.mktemp("converted") / "policy"
        policy.save_pretrained(folder)
        converted = specpolicy.load_policy(folder)
        assert converted.report() == policy.report()
        return converted
    return policy


class Replay:
    """Runs the recorded chain: a sampler that takes its noises from the reference."""

    exact = True

    def __init__(self, policy: DiffusionPolicy, reference: dict[str, NDArray[Any]]) -> None:
        scheduler, steps = policy.scheduler, len(reference["timesteps"])
        scheduler.set_timesteps(steps)
        np.testing.assert_array_equal(scheduler.timesteps.numpy(), reference["timesteps"])
        read = ReverseProcess.deterministic if "DDIM" in type(scheduler).__name__ else ReverseProcess.from_scheduler
        self.process = read(scheduler, steps).to("cpu", torch.float32)
        self.reference = reference

    def __call__(
        self, denoiser: Any, noise: Tensor, cond: Any = None, generator: Any = None, record: bool = False
    ) -> SampleResult:
        x, states = torch.from_numpy(self.reference["init_noise"]), []
        assert x.shape == noise.shape
        for step in range(self.process.num_steps):
            states.append(x)
            k = torch.full((len(x),), step)
            x0 = self.process.x0(x, denoiser(x, self.process.timesteps[k], cond), k)
            kick = self.reference["step_noise"][step] if "step_noise" in self.reference else np.zeros_like(x)
            x = self.process.step(x, x0, k, torch.from_numpy(kick))
        count = torch.full((len(x),), self.process.num_steps)
        return SampleResult(x, count, count.clone(), trajectory=torch.stack([*states, x]))


def _kept_steps(reference: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    return reference.get("path_step", np.arange(len(reference["timesteps"])))


def _worst(ours: Any, theirs: NDArray[Any]) -> float:
    assert tuple(ours.shape) == theirs.shape
    return float(np.abs(np.asarray(ours, dtype=np.float64) - theirs).max())


@torch.no_grad()
def test_conditions(recorded: Recorded, policy: DiffusionPolicy) -> None:
    cond = policy.encode(recorded.observation)
    for name in ("net/global_cond", "net/cond"):
        if name in recorded.reference:
            assert _worst(cond, recorded.reference[name].reshape(len(cond), -1)) < 1e-5
            return
    assert policy.config.inpainting


@torch.no_grad()
def test_networks(recorded: Recorded, policy: DiffusionPolicy) -> None:
    reference, cond = recorded.reference, policy.encode(recorded.observation)
    x, t = torch.from_numpy(reference["net/x"]), torch.from_numpy(reference["net/timestep"])
    if policy.config.inpainting:  # recorded without the observations in it
        answer = policy.network(x, t, torch.zeros(len(x), 0))
    else:
        answer = policy(x, t, cond[torch.from_numpy(reference.get("net/row", np.zeros(len(x), np.int64)))])
    assert _worst(answer, reference["net/out"]) < 1e-5


@torch.no_grad()
def test_networks_along_the_chain(recorded: Recorded, policy: DiffusionPolicy) -> None:
    reference, cond = recorded.reference, policy.encode(recorded.observation)
    times = reference["timesteps"][_kept_steps(reference)]
    for x, out, t in zip(reference["path_x"], reference["path_out"], times, strict=True):
        answer = policy(torch.from_numpy(x), torch.full((len(x),), int(t)), cond)
        assert _worst(answer, out) < 1e-5


def test_chunks(recorded: Recorded, policy: DiffusionPolicy) -> None:
    """The whole chain at the recorded noises, and what is played of it, in the environment's units."""
    reference = recorded.reference
    chunk = policy.predict_action(recorded.observation, Replay(policy, reference))
    config = policy.config
    if "sample_normalized" in reference:
        assert _worst(chunk.result.sample, reference["sample_normalized"]) < 1e-4
    if "action_pred" in reference:
        assert _worst(chunk.prediction, reference["action_pred"]) < 1e-4 * np.ptp(reference["action_pred"])
    assert _worst(chunk.actions, reference["action"]) < 1e-4 * np.ptp(reference["action"])
    assert chunk.actions.shape[1] == config.n_action_steps
    assert chunk.prediction.shape[-1] == config.env_action_dim
    if not config.inpainting:
        assert chunk.result.trajectory is not None
        assert _worst(chunk.result.trajectory[_kept_steps(reference)], reference["path_x"]) < 1e-4


def test_an_episode_begins_with_its_first_observation_everywhere(recorded: Recorded, policy: DiffusionPolicy) -> None:
    if "episode_start/action" not in recorded.reference:
        pytest.skip("recorded for LeRobot alone")
    reference = recorded.reference
    first = {key: np.repeat(v[:1, :1], policy.config.n_obs_steps, axis=1) for key, v in recorded.observation.items()}
    replayed = {**reference, **{k: reference[k][..., :1, :, :] for k in ("init_noise", "step_noise") if k in reference}}
    actions = policy.predict_action(first, Replay(policy, replayed)).actions[0]
    theirs = reference["episode_start/action"]
    assert _worst(actions, theirs) < 1e-4 * np.ptp(theirs)


def test_reports(recorded: Recorded, policy: DiffusionPolicy) -> None:
    report = policy.report()
    package = next(name for name in ("robomimic", "diffusion_policy", "lerobot") if name in str(recorded.checkpoint))
    assert package in report.lower() and "weights:" in report
    assert ("deterministic DDIM" in report) == ("DDIM" in type(policy.scheduler).__name__)


def test_more_fixtures_are_named_or_said_to_be_missing() -> None:
    if MORE is None:
        pytest.skip("SPECPOLICY_FIXTURES names no folder with further checkpoints")
    assert any(Path(MORE).glob("*/*/reference.npz")), f"SPECPOLICY_FIXTURES={MORE} holds no */*/reference.npz"
