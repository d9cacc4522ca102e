from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import pytest
import specpolicy_envs
from specpolicy_envs.robosuite_tasks import ENVIRONMENTS


def test_importing_registers_the_ids_and_no_simulator() -> None:
    code = (
        "import sys, gymnasium, specpolicy_envs, specpolicy_envs.experts\n"
        "assert 'specpolicy/Square-v0' in gymnasium.registry\n"
        "print(sorted({'robosuite', 'mujoco', 'cv2', 'numba', 'torch', 'pymunk', 'pygame'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(ENVIRONMENTS))
def test_longest_episodes_are_those_of_the_table(name: str) -> None:
    assert gym.spec(name).max_episode_steps == ENVIRONMENTS[name][1]


@pytest.mark.parametrize(("task", "steps"), [("Square", 400), ("ToolHang", 700), ("Transport", 700)])
def test_episodes_last_as_long_as_in_robomimic(task: str, steps: int) -> None:
    assert gym.spec(f"specpolicy/{task}-v0").max_episode_steps == steps


def test_registering_twice_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    specpolicy_envs.register_environments()
    assert not recwarn.list


@pytest.mark.usefixtures("simulator")
def test_the_id_with_its_module_needs_no_import() -> None:
    code = (
        "import gymnasium as gym\nenv = gym.make('specpolicy_envs:specpolicy/Square-v0')\nprint(env.reset(seed=0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=True)
    assert done.stdout.strip() == "{'success': False}"
    assert done.stderr == ""
