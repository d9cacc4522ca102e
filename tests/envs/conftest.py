"""Environments for the tests of this folder; without the simulator, the tests that ask for them are skipped."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from specpolicy_envs.rendering import rendering_problem
from specpolicy_envs.robosuite_env import RobosuiteEnv
from specpolicy_envs.robosuite_tasks import SquareEnv, ToolHangEnv, TransportEnv


@pytest.fixture(scope="session")
def simulator() -> None:
    # not pytest.importorskip: importing robosuite bare would load EGL and print, which loading it quietly must not
    if importlib.util.find_spec("robosuite") is None:
        pytest.skip("robosuite is not installed: pip install 'specpolicy[sim]'")


@pytest.fixture(scope="session")
def opengl(simulator: None) -> None:
    problem = rendering_problem()
    if problem is not None:
        pytest.skip(problem)


@pytest.fixture(scope="session")
def square(simulator: None) -> Iterator[SquareEnv]:
    """One environment for all tests: a seeded reset owes nothing to what was played before, as test_resets checks."""
    env = SquareEnv()
    yield env
    env.close()


@pytest.fixture(scope="session")
def tool_hang(simulator: None) -> Iterator[ToolHangEnv]:
    env = ToolHangEnv()
    yield env
    env.close()


@pytest.fixture(scope="session")
def transport(simulator: None) -> Iterator[TransportEnv]:
    env = TransportEnv()
    yield env
    env.close()


@pytest.fixture(params=["square", "tool_hang", "transport"])
def env(request: pytest.FixtureRequest) -> RobosuiteEnv:
    """Each task in turn, for what is asked of all of them."""
    chosen: RobosuiteEnv = request.getfixturevalue(request.param)
    return chosen
