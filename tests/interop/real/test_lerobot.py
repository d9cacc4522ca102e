"""The real LeRobot beside this library: the same actions from its checkpoints, and its policies accelerated in place.

LeRobot has its own pins (torch below 2.12, Python 3.12): ``make test-lerobot`` makes an environment and runs this file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip(
    "lerobot", reason="LeRobot is not installed here: make test-lerobot runs this in its own environment"
)

from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from numpy.typing import NDArray
from torch import Tensor

import specpolicy
from specpolicy import SequentialSampler
from specpolicy.datasets.lerobot import LeRobotDataset
from specpolicy.datasets.lerobot_writer import write_lerobot_dataset
from specpolicy.datasets.robomimic import Episode

CAMERAS = ("observation.images.wrist_left", "observation.images.top")


def _image(height: int, width: int) -> PolicyFeature:
    return PolicyFeature(FeatureType.VISUAL, (3, height, width))


VARIANTS: dict[str, tuple[tuple[int, int] | None, dict[str, Any]]] = {
    "vectors": (None, {}),
    "few steps": (
        None,
        {"num_inference_steps": 20, "n_obs_steps": 1, "n_groups": 4, "use_film_scale_modulation": False},
    ),
    "one encoder, cropped": (
        (84, 84),
        {"use_separate_rgb_encoder_per_camera": False, "use_group_norm": True, "crop_shape": (75, 61)},
    ),
    "two encoders, resized": (
        (96, 80),
        {"use_separate_rgb_encoder_per_camera": True, "use_group_norm": False, "vision_backbone": "resnet34",
         "resize_shape": (64, 72), "crop_ratio": 0.83},
    ),
    "quantiles": (
        (64, 64),
        {"use_group_norm": True, "use_separate_rgb_encoder_per_camera": False, "prediction_type": "sample",
         "beta_schedule": "linear",
         "normalization_mapping": {"VISUAL": "MIN_MAX", "STATE": "QUANTILES", "ACTION": "QUANTILE10"}},
    ),
}  # fmt: skip


class Trained:
    """A policy of LeRobot with random weights and statistics, saved by LeRobot."""

    def __init__(self, folder: Path, images: tuple[int, int] | None, options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        inputs: dict[str, Any] = {CAMERAS[0]: _image(*images)} if images else {}
        inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (5,))
        inputs |= {CAMERAS[1]: _image(*images)} if images else {}
        inputs |= {} if images else {"observation.environment_state": PolicyFeature(FeatureType.ENV, (3,))}
        action = {"action": PolicyFeature(FeatureType.ACTION, (4,))}
        small = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16, "horizon": 16, "n_action_steps": 8}
        self.config = DiffusionConfig(
            input_features=inputs, output_features=action, pretrained_backbone_weights=None, device="cpu",
            push_to_hub=False, **small, **options,
        )  # fmt: skip
        self.policy = DiffusionPolicy(self.config).eval()
        numbers = np.random.default_rng(1)
        self._shake(numbers)
        self.before, self.after = make_diffusion_pre_post_processors(
            self.config, dataset_stats={key: _statistics(numbers, f.shape) for key, f in {**inputs, **action}.items()}
        )
        self.folder = folder
        for part in (self.policy, self.before, self.after):
            part.save_pretrained(folder)
        steps = self.config.n_obs_steps
        self.observation: dict[str, NDArray[Any]] = {
            key: numbers.integers(0, 256, (2, steps, *f.shape), dtype=np.uint8)
            if f.type is FeatureType.VISUAL
            else numbers.normal(size=(2, steps, *f.shape)).astype(np.float32)
            for key, f in inputs.items()
        }

    def _shake(self, numbers: np.random.Generator) -> None:
        """Give batch norms statistics that matter."""
        for module in self.policy.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for buffer, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5)):
                    buffer.copy_(torch.from_numpy(numbers.uniform(low, high, buffer.shape)))

    def batch(self) -> dict[str, Tensor]:
        tensors = {k: torch.from_numpy(v) for k, v in self.observation.items()}
        scaled = {k: v.float() / 255 if v.dtype == torch.uint8 else v for k, v in tensors.items()}
        return self.before(scaled)

    @torch.no_grad()
    def actions(self) -> NDArray[np.float32]:
        return self.after(self.policy.predict_action_chunk(self.batch())).numpy()


def _statistics(numbers: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Tensor]:
    shape = (3, 1, 1) if len(shape) == 3 else shape
    low = numbers.uniform(0, 0.2, shape) if len(shape) == 3 else numbers.uniform(-1, 0, shape)
    high = numbers.uniform(0.8, 1, shape)
    values = {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4, "q01": low + 0.01,
              "q10": low + 0.1, "q90": high - 0.1, "q99": high - 0.01}  # fmt: skip
    return {name: torch.from_numpy(value).float() for name, value in values.items()}


@pytest.fixture(scope="module", params=list(VARIANTS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    images, options = VARIANTS[request.param]
    yield Trained(tmp_path_factory.mktemp("lerobot") / "pretrained_model", images, options)


def test_the_same_actions(trained: Trained) -> None:
    """Sequential samplers of both draw the same random numbers in the same order."""
    torch.manual_seed(3)
    expected = trained.actions()
    policy = specpolicy.load_policy(trained.folder)
    process = specpolicy.ReverseProcess.from_scheduler(policy.scheduler, policy.num_inference_steps)
    torch.manual_seed(3)
    found = policy.predict_action(trained.observation, SequentialSampler(process)).actions
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.ptp(expected))


def test_in_place(trained: Trained) -> None:
    policy = trained.policy
    torch.manual_seed(4)
    expected = trained.actions()
    with specpolicy.accelerate(policy, SequentialSampler):
        torch.manual_seed(4)
        np.testing.assert_allclose(trained.actions(), expected, atol=1e-4 * np.ptp(expected))
    with specpolicy.accelerate(policy) as fast:
        trained.actions()
    assert fast.exact and fast.account.evaluations_per_chunk < 0.7 * fast.account.steps
    torch.manual_seed(4)
    np.testing.assert_array_equal(trained.actions(), expected)


def test_actions_one_by_one(trained: Trained) -> None:
    policy, config = trained.policy, trained.config
    policy.reset()
    step = {key: part[:, -1] for key, part in trained.batch().items() if key.startswith("observation")}
    with specpolicy.accelerate(policy) as fast:
        actions = [policy.select_action(dict(step)) for _ in range(config.n_action_steps + 1)]
    policy.reset()
    assert fast.account.chunks == 2 * 2  # for two robots
    assert all(action.shape == (2, 4) and bool(action.isfinite().all()) for action in actions)


def test_deterministic_policies_are_refused(tmp_path: Path) -> None:
    trained = Trained(tmp_path / "ddim", None, {"noise_scheduler_type": "DDIM", "num_inference_steps": 10})
    with pytest.raises(ValueError, match='chain="ddpm"'):
        specpolicy.accelerate(trained.policy)
    with specpolicy.accelerate(trained.policy, chain="ddpm") as fast:
        trained.actions()
    assert fast.account.steps == 100 and not fast.exact


def test_datasets_that_lerobot_writes(tmp_path: Path) -> None:
    """Vectors, images in parquet and AV1 video, as LeRobot 0.6.1 records them."""
    datasets = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs lerobot[dataset]")
    vector = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    picture = {"shape": (64, 96, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.state": vector, "action": vector,
        "observation.images.top": {"dtype": "video", **picture},
        "observation.images.wrist": {"dtype": "image", **picture},
    }  # fmt: skip
    recorded = datasets.LeRobotDataset.create("me/ds", fps=10, features=features, root=tmp_path / "ds", use_videos=True)
    lengths = (7, 5)
    for episode, length in enumerate(lengths):
        for step in range(length):
            image = np.full((64, 96, 3), 40, np.uint8)
            image[..., 0] = 20 * step + 10 * episode
            state = np.array([episode, step], np.float32)
            recorded.add_frame(
                {"observation.state": state, "action": -state, "observation.images.top": image,
                 "observation.images.wrist": image, "task": "push"}
            )  # fmt: skip
        recorded.save_episode()
    recorded.finalize()
    cameras = {"observation.images.top": (3, 64, 96), "observation.images.wrist": (64, 96, 3)}
    found = list(LeRobotDataset(tmp_path / "ds").episodes({"observation.state": 2}, cameras, 2))
    assert [len(each.actions) for each in found] == list(lengths)
    for index, each in enumerate(found):
        steps = np.arange(lengths[index])
        np.testing.assert_array_equal(each.observations, np.stack([np.full(len(steps), index), steps], 1))
        np.testing.assert_array_equal(each.actions, -each.observations)
        red = 20 * steps + 10 * index
        np.testing.assert_array_equal(each.images["observation.images.wrist"][:, 0, 0, 0], red)
        np.testing.assert_allclose(each.images["observation.images.top"][:, 0].mean((1, 2)), red, atol=6)


def test_recorded_rollouts_are_a_data_set_of_lerobots(tmp_path: Path) -> None:
    """What :mod:`specpolicy.datasets.lerobot_writer` wrote, read and made batches of by LeRobot itself."""
    datasets = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    numbers = np.random.default_rng(0)
    episodes = [
        Episode(
            actions=numbers.normal(size=(length, 2)).astype(np.float32),
            observations={
                "place": numbers.normal(size=(length, 3)).astype(np.float32),
                "width": numbers.normal(size=(length, 1)).astype(np.float32),
                "eye": numbers.integers(0, 255, (length, 3, 32, 48), dtype=np.uint8),
            },
            others={"rewards": np.arange(length, dtype=np.float32)},
            attributes={"seed": number, "success": number == 1},
        )
        for number, length in enumerate((5, 8))
    ]
    write_lerobot_dataset(tmp_path / "walks", episodes, 20, "walk")
    read = datasets.LeRobotDataset(
        "me/walks", root=tmp_path / "walks", delta_timestamps={"action": [0.0, 0.05], "observation.state": [-0.05, 0.0]}
    )
    assert (read.num_episodes, read.num_frames, read.fps) == (2, 13, 20)
    for number, episode in enumerate(episodes):
        for step in range(len(episode)):
            row = read[5 * number + step]
            later, before = min(step + 1, len(episode) - 1), max(step - 1, 0)
            np.testing.assert_array_equal(row["action"].numpy(), episode.actions[[step, later]])
            state = np.concatenate([episode.observations["place"], episode.observations["width"]], 1)
            np.testing.assert_array_equal(row["observation.state"].numpy(), state[[before, step]])
            picture = row["observation.images.eye"].numpy()
            np.testing.assert_allclose(picture, episode.observations["eye"][step] / 255, atol=1e-6)
            assert row["task"] == "walk" and row["next.reward"].item() == step
            assert row["next.success"].item() == (number == 1 and step == 7)
    assert read.meta.stats["observation.images.eye"]["mean"].shape == (3, 1, 1)


@pytest.mark.parametrize("sampler", ["auto", "off"])
def test_lerobots_own_evaluation_with_the_plugin(tmp_path: Path, sampler: str) -> None:
    """``lerobot-eval`` as a user calls it, in a process of its own."""
    pytest.importorskip("lerobot_policy_specpolicy", reason="needs examples/lerobot_plugin: make test-lerobot")
    pytest.importorskip("gym_pusht", reason="needs lerobot[pusht]")
    inputs = {"observation.image": _image(96, 96), "observation.state": PolicyFeature(FeatureType.STATE, (2,))}
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    torch.manual_seed(0)
    config = DiffusionConfig(
        input_features=inputs, output_features=outputs, pretrained_backbone_weights=None, device="cpu",
        push_to_hub=False, down_dims=(16, 32), diffusion_step_embed_dim=16, horizon=16, n_action_steps=8,
        use_group_norm=True,
    )  # fmt: skip
    numbers = np.random.default_rng(1)
    stats = {key: _statistics(numbers, f.shape) for key, f in {**inputs, **outputs}.items()}
    folder = tmp_path / "pretrained_model"
    for part in (DiffusionPolicy(config).eval(), *make_diffusion_pre_post_processors(config, dataset_stats=stats)):
        part.save_pretrained(folder)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lerobot-eval")), f"--policy.path={folder}", "--policy.device=cpu",
         "--env.type=pusht", "--env.episode_length=16", "--eval.n_episodes=1", "--eval.batch_size=1",
         "--eval.use_async_envs=false", f"--output_dir={tmp_path / 'out'}"],
        capture_output=True, text=True, timeout=600, env={**os.environ, "SPECPOLICY_SAMPLER": sampler},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("specpolicy: ")]
    if sampler == "off":
        assert not said
        return
    (line,) = said
    evaluations = re.search(
        r"\(same distribution\): ([\d.]+) network evaluations in its first chunk, 100 without", line
    )
    assert evaluations is not None and float(evaluations[1]) < 40
    assert (tmp_path / "out" / "eval_info.json").is_file()
