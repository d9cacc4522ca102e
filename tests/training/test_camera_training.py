"""Training from images: several cameras in one file, random crops, many noises for each encoded pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from specpolicy.calibration.calibrate import observations_of_demonstrations
from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.datasets.action_chunks import cut_action_chunks
from specpolicy.datasets.demonstrations import read_demonstrations
from specpolicy.datasets.robomimic import DemonstrationError
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.training.loop import TrainingSettings
from specpolicy.training.train import train_policy
from specpolicy.utils.run_identity import OtherRunError

IMAGES = {"front_image": (24, 24, 3), "wrist_image": (16, 20, 3)}
SIDE = 24
SETTINGS = TrainingSettings(
    steps=20, batch_size=16, save_every=10, warmup_steps=2, learning_rate=3e-3, bfloat16=False, threads=1
)


def write_file(path: Path, demos: int = 4, length: int = 20) -> Path:
    """A dot that wanders; the front camera sees it, and the action is where it is."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(demos):
            group = file.create_group(f"data/demo_{number}")
            dot = rng.integers(3, SIDE - 3, size=(length + number, 2))
            front = rng.integers(0, 40, size=(length + number, SIDE, SIDE, 3), dtype=np.uint8)
            for step, (row, column) in enumerate(dot):
                front[step, row - 2 : row + 3, column - 2 : column + 3] = 255
            group["actions"] = dot / SIDE
            group["obs/front_image"] = front
            group["obs/wrist_image"] = rng.integers(256, size=(length + number, 16, 20, 3), dtype=np.uint8)
            group["obs/eef"] = rng.normal(size=(length + number, 2))
            group["obs/dot"] = dot.astype(np.float64)
    return path


def config(**changes: Any) -> PolicyConfig:
    task = {"name": "toy", "observations": {k: list(v) for k, v in IMAGES.items()} | {"eef": 2}, "action_dim": 2}
    policy: dict[str, Any] = {
        "encoder": {"backbone": "narrow", "crop": [16, 18], "keypoints": 8, "features": 8},
        "network": {"name": "mlp", "width": 32, "blocks": 1, "embed": 16, "timestep_dim": 8},
        "horizon": 4,
        "n_action_steps": 2,
        "scheduler": {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    }
    return PolicyConfig.for_task(task, policy | changes)


def test_frames_line_up_with_their_actions(tmp_path: Path) -> None:
    data = read_demonstrations(write_file(tmp_path / "d.hdf5"), {"eef": 2}, 1, IMAGES, ["dot"])
    assert [len(each.images["wrist_image"]) for each in (*data.train, *data.valid)] == [20, 21, 22, 23]
    chunks = cut_action_chunks(data.train, n_obs_steps=2, horizon=4, n_action_steps=2)
    assert len(chunks.images["front_image"]) == 20 + 21 + 22
    moments = chunks.frames[:, 1]  # the present step; the chunk's second action is for it
    torch.testing.assert_close(chunks.others["dot"][moments] / SIDE, chunks.actions[:, 1])
    seen = chunks.images["front_image"][moments]
    places = (chunks.actions[:, 1] * SIDE).round().long()
    assert (seen[torch.arange(len(seen)), places[:, 0], places[:, 1]] == 255).all()
    assert (chunks.frames[:, 1] - chunks.frames[:, 0]).unique().tolist() == [0, 1]  # 0: an episode's start
    assert int((chunks.frames[:, 1] == chunks.frames[:, 0]).sum()) == 3


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({"front_image": (24, 32, 3)}, r"obs/front_image has shape \(20, 24, 24, 3\); expected \(20, 24, 32, 3\)"),
        ({"eef": (2,)}, "obs/eef has type float64; expected uint8"),
        ({"side_image": (24, 24, 3)}, r"lacks \['side_image'\]"),
    ],
)
def test_wrong_images_name_the_episode(tmp_path: Path, images: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(DemonstrationError, match=rf"data/demo_0.*{says}"):
        read_demonstrations(write_file(tmp_path / "d.hdf5"), {"eef": 2}, 1, images)


@pytest.mark.slow
def test_a_policy_learns_what_only_the_camera_tells(tmp_path: Path) -> None:
    path = write_file(tmp_path / "d.hdf5", demos=6, length=60)
    steps = TrainingSettings(steps=200, batch_size=32, save_every=200, warmup_steps=10, learning_rate=3e-3, threads=1)
    trained = train_policy(
        config(), path, steps, tmp_path / "run", validation_demos=1, noise_draws=4, auxiliary={"dot": 1.0}
    )
    held_out = read_demonstrations(path, {"eef": 2}, 1, IMAGES).valid[0]
    observation = {key: images[:, None].repeat(2, axis=1) for key, images in held_out.images.items()}
    observation["eef"] = held_out.observations[:, None].repeat(2, axis=1)
    with torch.inference_mode():
        cond = trained.encode(observation)
        noise = torch.randn(len(cond), 4, 2, generator=torch.Generator().manual_seed(0))
        chunk = trained.action_normalizer.unnormalize(trained(noise, torch.full((len(cond),), 19), cond))
    error = (chunk[:, 1].numpy() - held_out.actions).std()
    assert error < 0.65 * held_out.actions.std()  # from pure noise: the answer is in the image


def test_it_is_deterministic_resumes_and_loads(tmp_path: Path) -> None:
    path = write_file(tmp_path / "d.hdf5")
    arguments: dict[str, Any] = {"validation_demos": 1, "noise_draws": 2, "auxiliary": {"dot": 2.0}}
    once = train_policy(config(), path, SETTINGS, tmp_path / "once", **arguments)
    again = train_policy(config(), path, SETTINGS, tmp_path / "again", **arguments)
    loaded = DiffusionPolicy.from_pretrained(tmp_path / "once")
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]) and torch.equal(tensor, loaded.state_dict()[name]), name
    assert not any("layers" in name or "targets" in name for name in loaded.state_dict())
    for change in ({"noise_draws": 3}, {"auxiliary": {"dot": 1.0}}, {"auxiliary": None}):
        with pytest.raises(OtherRunError, match=next(iter(change))):
            train_policy(config(), path, SETTINGS, tmp_path / "once", **(arguments | change))


def test_features_pass_the_normalizer_unchanged(tmp_path: Path) -> None:
    trained = train_policy(config(), write_file(tmp_path / "d.hdf5"), SETTINGS, tmp_path / "run", validation_demos=1)
    assert trained.config.observations == {"front_image": 8, "wrist_image": 8, "eef": 2}
    low, high = trained.observation_normalizer.low, trained.observation_normalizer.high
    assert (low[:16] == -1).all() and (high[:16] == 1).all()
    assert (low[16:] != -1).all() and (high[16:] != 1).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"auxiliary": {"pose": 1.0}}, r"lacks \['pose'\]"),
        ({"noise_draws": 0}, "noise_draws=0: expected a whole number from 1 on"),
    ],
)
def test_what_cannot_be_trained_is_said(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        train_policy(
            config(), write_file(tmp_path / "d.hdf5"), SETTINGS, tmp_path / "run", **({"validation_demos": 1} | change)
        )


def test_auxiliary_vectors_need_a_camera(tmp_path: Path) -> None:
    without = PolicyConfig("toy", {"eef": 2}, 2, horizon=4, n_action_steps=2, network={"name": "mlp", "width": 8})
    with pytest.raises(ValueError, match="read off images, but the policy has no cameras"):
        train_policy(without, write_file(tmp_path / "d.hdf5"), SETTINGS, tmp_path / "run", auxiliary={"dot": 1.0})


def test_calibration_encodes_each_recorded_frame_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy, path = DiffusionPolicy(config()).eval(), write_file(tmp_path / "d.hdf5")
    histories = observations_of_demonstrations(policy, path)
    assert policy.encoders.encoded == 2 * (20 + 21 + 22 + 23)
    assert histories.observations.shape == (86, 2, 18)
    episode = read_demonstrations(path, {"eef": 2}, 0, IMAGES).train[1]
    seen = {key: images[None, 6:8] for key, images in episode.images.items()} | {"eef": episode.observations[None, 6:8]}
    with torch.inference_mode():
        expected = policy.encode(seen)
    which = np.array([20 + 7])
    torch.testing.assert_close(histories.conditions(policy, torch.from_numpy(which)), expected)
    torch.testing.assert_close(policy.encode(histories.named(policy, which)), expected)


def test_the_command_trains_from_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_file(tmp_path / "d.hdf5")
    task = ["task.name=toy", "task.action_dim=2", "~task.observations",
            "+task.observations={front_image: [24, 24, 3], eef: 2}"]  # fmt: skip
    steps = ["training.steps=2", "training.batch_size=4", "training.save_every=2", "validation_demos=1"]
    arguments = ["train", *task, *steps, f"dataset={path}", f"out={tmp_path / 'run'}"]
    small = ["policy.network.width=16", "policy.encoder.crop=[20,20]", "policy.horizon=4", "policy.n_action_steps=2"]
    assert main([*arguments, "policy=image", *small, "noise_draws=2", "auxiliary={dot: 1.0}"]) == 0
    assert DiffusionPolicy.from_pretrained(tmp_path / "run").config.cameras["front_image"]["shape"] == [3, 24, 24]
    capsys.readouterr()
    assert main([*arguments, "policy=mlp"]) == EXIT_USER_ERROR
    assert "has cameras ['front_image'], the policy no encoder; take policy=image" in capsys.readouterr().err
