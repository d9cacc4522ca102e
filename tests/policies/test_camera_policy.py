"""Policies that look at images: checked, encoded once a chunk, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specpolicy import FreeDrafter, ReverseProcess, SequentialSampler, SpeculativeSampler
from specpolicy.policies.checkpoint import CheckpointError
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.normalizer import MinMaxNormalizer
from specpolicy.policies.observations import ObservationError

CAMERA: dict[str, Any] = {"shape": [3, 24, 32], "backbone": "narrow", "keypoints": 4}


def camera_policy(**changes: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "task": "square",
        "observations": {"front": 5, "eef": 2, "wrist": 3},
        "action_dim": 4,
        "network": {"name": "mlp", "width": 16, "blocks": 1, "embed": 8, "timestep_dim": 8},
        "scheduler": {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True},
        "cameras": {"wrist": CAMERA | {"features": 3, "layout": "CHW"}, "front": CAMERA | {"features": 5}},
    }
    policy = DiffusionPolicy(PolicyConfig(**(config | changes))).eval()
    policy.observation_normalizer = MinMaxNormalizer(
        torch.tensor([-1.0] * 5 + [0.0, 0.0] + [-1.0] * 3), torch.tensor([1.0] * 5 + [2.0, 4.0] + [1.0] * 3)
    )
    return policy


def observation(batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "eef": rng.normal(size=(batch, 2, 2)),
        "front": rng.integers(256, size=(batch, 2, 24, 32, 3), dtype=np.uint8),
        "wrist": rng.integers(256, size=(batch, 2, 3, 24, 32), dtype=np.uint8),
        "unused": np.zeros(7),
    }


def sampler(policy: DiffusionPolicy) -> SpeculativeSampler:
    return SpeculativeSampler(ReverseProcess.from_scheduler(policy.scheduler, 20), FreeDrafter(), window=8)


@torch.inference_mode()
def test_features_stand_at_their_place_and_pass_the_normalizer() -> None:
    policy, seen = camera_policy(), observation(3)
    cond = policy.encode(seen).view(3, 2, 10)
    front = policy.encoders[1](torch.from_numpy(seen["front"]).flatten(0, 1).permute(0, 3, 1, 2)).view(3, 2, 5)
    wrist = policy.encoders[0](torch.from_numpy(seen["wrist"]).flatten(0, 1)).view(3, 2, 3)
    torch.testing.assert_close(cond[..., :5], front)
    torch.testing.assert_close(cond[..., 7:], wrist)
    eef = torch.from_numpy(seen["eef"].astype(np.float32))
    torch.testing.assert_close(cond[..., 5:7], eef / torch.tensor([1.0, 2.0]) - 1)


def test_images_are_encoded_once_a_chunk_whatever_the_sampler_asks() -> None:
    policy, seen = camera_policy(), observation(2)
    for chosen in (sampler(policy), SequentialSampler(ReverseProcess.from_scheduler(policy.scheduler, 20))):
        policy.reset()
        before = policy.encoders.encoded
        result = policy.predict_action(seen, chosen, torch.Generator().manual_seed(0)).result
        assert result.passes.min() > 1
        assert policy.encoders.encoded - before == 8  # two rows, two steps, two cameras


def test_a_chunk_of_the_next_tick_encodes_one_frame() -> None:
    policy, seen = camera_policy(), observation(1)
    chosen = sampler(policy)
    policy.predict_action(seen, chosen, torch.Generator().manual_seed(0))
    later = {name: np.roll(part, -1, axis=1) if part.ndim > 1 else part for name, part in seen.items()}
    for name in ("front", "wrist"):
        later[name][:, 1] += 1
    before = policy.encoders.encoded
    chunk = policy.predict_action(later, chosen, torch.Generator().manual_seed(0))
    assert policy.encoders.encoded - before == 2  # one a camera
    fresh = camera_policy()
    again = fresh.predict_action(later, sampler(fresh), torch.Generator().manual_seed(0))
    np.testing.assert_allclose(chunk.actions, again.actions, rtol=1e-4, atol=1e-5)


def test_a_predraft_shares_its_frames_with_the_chunk() -> None:
    policy, seen = camera_policy(), observation(1)
    chosen, generator = sampler(policy), torch.Generator().manual_seed(0)
    draft = policy.predraft(seen, chosen, generator)
    before = policy.encoders.encoded
    policy.predict_action(seen, chosen, generator, predraft=draft)
    assert policy.encoders.encoded == before


@torch.inference_mode()
def test_features_may_stand_for_images() -> None:
    policy, seen = camera_policy(), observation(2)
    joined = policy.join(seen).numpy()
    before = policy.encoders.encoded
    cond = policy.encode({"front": joined[..., :5], "eef": joined[..., 5:7], "wrist": joined[..., 7:]})
    assert policy.encoders.encoded == before
    torch.testing.assert_close(cond, policy.encode(seen))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"front": None}, r"lacks \['front'\]"),
        ({"front": np.zeros((2, 2, 24, 32, 3))}, "observation.'front'. has type float64; expected uint8"),
        (
            {"front": np.zeros((2, 2, 32, 24, 3), np.uint8)},
            r"has shape .*; expected \(batch, 2, 24, 32, 3\): the policy's 2",
        ),
        ({"wrist": np.zeros((2, 2, 24, 32, 3), np.uint8)}, r"expected \(batch, 2, 3, 24, 32\)"),
        ({"front": np.zeros((2, 24, 32, 3), np.uint8)}, r"expected \(batch, 2, 24, 32, 3\)"),
        ({"front": np.zeros((1, 2, 24, 32, 3), np.uint8)}, "different batch sizes"),
        ({"front": np.full((2, 2, 5), np.nan)}, "NaN"),
        ({"front": np.zeros((2, 2, 4))}, r"expected \(batch, 2 steps, 5\)"),
    ],
)
def test_bad_images(change: dict[str, Any], says: str) -> None:
    changed = {name: part for name, part in (observation(2) | change).items() if part is not None}
    with pytest.raises(ObservationError, match=says):
        camera_policy().encode(changed)


def test_it_comes_back_as_it_went(tmp_path: Path) -> None:
    policy, seen = camera_policy(), observation(2)
    policy.save_pretrained(tmp_path / "whole")
    policy.save_pretrained(tmp_path / "half", half=True)
    expected = policy.encode(seen)
    back = DiffusionPolicy.from_pretrained(tmp_path / "whole")
    assert back.config == policy.config
    assert torch.equal(back.encode(seen), expected)
    half = DiffusionPolicy.from_pretrained(tmp_path / "half")
    torch.testing.assert_close(half.encode(seen), expected, rtol=0, atol=5e-3)
    whole_size, half_size = ((tmp_path / name / "policy.safetensors").stat().st_size for name in ("whole", "half"))
    assert half_size < 0.6 * whole_size
    assert "cameras" not in PolicyConfig("square", {"eef": 2}, 4).to_dict()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cameras": {"side": CAMERA}}, r"cameras \['side'\] are none of the observations"),
        (
            {"observations": {"front": 6, "eef": 2, "wrist": 3}},
            "observations.front is 6, but this camera has 5",
        ),
        ({"cameras": {"front": CAMERA | {"backbone": "vit"}}}, "cameras.front: backbone 'vit'"),
        ({"network": {"name": "mlp", "height": 3}}, "height"),
    ],
)
def test_a_checkpoint_that_cannot_be_built_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    camera_policy().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=says):
        DiffusionPolicy.from_pretrained(tmp_path)


def test_no_other_network_is_asked_with_its_features() -> None:
    config = camera_policy().config
    with pytest.raises(ValueError, match="cameras: the teacher and the policy encode images each in its own way"):
        config.check_interchangeable(config, "teacher")


def test_a_task_with_cameras_makes_a_configuration() -> None:
    task = {"name": "toy", "observations": {"front": [24, 32, 3], "eef": 2}, "action_dim": 4}
    config = PolicyConfig.for_task(
        task, {"encoder": {"backbone": "narrow", "features": 7}, "horizon": 8, "n_action_steps": 4}
    )
    assert config.observations == {"front": 7, "eef": 2}
    assert config.cameras == {"front": {"layout": "HWC", "shape": [3, 24, 32], "backbone": "narrow", "features": 7}}
    assert PolicyConfig.for_task(task | {"observations": {"eef": 2}}, {}).cameras == {}
    with pytest.raises(ValueError, match=r"task 'toy' has cameras \['front'\], the policy no encoder"):
        PolicyConfig.for_task(task, {})
