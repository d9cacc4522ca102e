"""The real robomimic 0.5 beside this library: the same actions from its checkpoints, its policies accelerated in place.

PyPI's robomimic has no diffusion policy: ``make test-robomimic ROBOMIMIC_SOURCE=<checkout of robomimic 0.5>`` makes an
environment with the versions that it pins (diffusers 0.11.1) and runs this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip(
    "robomimic.algo.diffusion_policy",
    reason="robomimic 0.5 is not installed here: make test-robomimic ROBOMIMIC_SOURCE=<checkout>",
)

import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
import robomimic.utils.train_utils as train_utils
from robomimic.algo import algo_factory
from robomimic.config import config_factory

import specpolicy
from specpolicy import SequentialSampler

SHAPES = {"robot0_eef_pos": [3], "object": [6]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights, saved by robomimic."""
    config = config_factory("diffusion_policy")
    config.unlock()
    config.observation.modalities.obs.low_dim, config.observation.modalities.obs.rgb = list(SHAPES), []
    config.algo.ddpm.enabled, config.algo.ddim.enabled = True, False
    config.algo.optim_params.policy.num_train_batches = config.algo.optim_params.policy.num_epochs = 10
    config.lock()
    obs_utils.initialize_obs_utils_with_config(config)
    torch.manual_seed(0)
    algorithm = algo_factory("diffusion_policy", config, obs_key_shapes=SHAPES, ac_dim=7, device=torch.device("cpu"))
    path = tmp_path_factory.mktemp("robomimic") / "model.pth"
    about = {"ac_dim": 7, "all_shapes": SHAPES, "all_obs_keys": list(SHAPES), "use_images": False}
    environment = {"env_name": "NutAssemblySquare", "env_version": "1.4.1", "type": 1, "env_kwargs": {}}
    train_utils.save_model(algorithm, config, env_meta=environment, shape_meta=about, ckpt_path=str(path))
    return path


@pytest.fixture
def rollout_policy(saved: Path) -> Any:
    return file_utils.policy_from_checkpoint(ckpt_path=str(saved), device=torch.device("cpu"))[0]


def observation() -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(1)
    return {key: numbers.normal(size=(2, *shape)).astype(np.float32) for key, shape in SHAPES.items()}


def test_the_same_actions(saved: Path, rollout_policy: Any) -> None:
    """Sequential samplers of both draw the same random numbers in the same order."""
    rollout_policy.start_episode()
    torch.manual_seed(3)
    expected = rollout_policy(ob=observation())
    policy = specpolicy.load_policy(saved)
    process = specpolicy.ReverseProcess.from_scheduler(policy.scheduler, policy.num_inference_steps)
    torch.manual_seed(3)
    batch = {key: value[None] for key, value in observation().items()}
    found = policy.predict_action(batch, SequentialSampler(process)).actions[0, 0]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_in_place(rollout_policy: Any) -> None:
    torch.manual_seed(4)
    rollout_policy.start_episode()
    expected = rollout_policy(ob=observation())
    with specpolicy.accelerate(rollout_policy, SequentialSampler):
        torch.manual_seed(4)
        rollout_policy.start_episode()
        np.testing.assert_allclose(rollout_policy(ob=observation()), expected, atol=2e-4)
    with specpolicy.accelerate(rollout_policy) as fast:
        for _ in range(2):
            rollout_policy.start_episode()
            assert np.isfinite(rollout_policy(ob=observation())).all()
    assert fast.exact and fast.account.chunks == 2 and fast.account.evaluations_per_chunk < 50
