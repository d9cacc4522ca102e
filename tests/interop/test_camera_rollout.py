"""A camera policy of another package plays a robosuite task: the environment renders what the policy looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interop.foreign_files import ROBOMIMIC
from specpolicy_envs.rendering import rendering_available, rendering_problem

import specpolicy
from specpolicy.commands.common import camera_images, comparison_of
from specpolicy.config import compose


def test_the_task_renders_what_the_policy_looks_at() -> None:
    if not rendering_available():
        pytest.skip(f"needs OpenGL: {rendering_problem()}")
    cfg = compose("rollout", ["task=square", f"checkpoint={ROBOMIMIC}", "sampler=ddim2", "seeds=[3]", "video=[]"])
    policy = specpolicy.load_policy(ROBOMIMIC)
    wanted = camera_images(cfg, policy)["images"]
    assert wanted == dict(policy.observations.images) and len(wanted) == 2

    env = comparison_of(cfg, {"ddim2": cfg.sampler}, [3]).make_env()
    first, _ = env.reset(seed=3)
    then, *_ = env.step(np.zeros(env.action_space.shape, np.float32))
    history = {name: np.stack([first[name], then[name]])[None] for name in policy.observations.zeros(1)}
    history = {name: value[:, -policy.config.n_obs_steps :] for name, value in history.items()}
    sampler = specpolicy.samplers.load("ddim2", policy)
    chunk = policy.predict_action(history, sampler, generator=torch.Generator().manual_seed(0))
    assert chunk.actions.shape == (1, policy.config.n_action_steps, *env.action_space.shape)

    dark = {name: np.zeros_like(value) if name in wanted else value for name, value in history.items()}
    other = policy.predict_action(dark, sampler, generator=torch.Generator().manual_seed(0))
    assert not np.allclose(chunk.actions, other.actions)  # it does look at them


def test_a_task_with_its_own_camera_needs_no_argument() -> None:
    cfg = compose("rollout", ["task=pusht_image"])
    assert camera_images(cfg, specpolicy.load_policy(cfg.checkpoint)) == {}
