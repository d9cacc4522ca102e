"""A scripted expert in a worker: the seed of an episode in, a demonstration or the reason for its failure out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.datasets.robomimic import GYM_ENVIRONMENT, ROBOSUITE_ENVIRONMENT, Attribute, Episode
from specpolicy.utils.errors import format_exception


def environment_arguments(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """Describe an unwrapped environment as robomimic's ``env_args``.

    Args:
        env: one whose ``task`` gives ``robosuite_arguments()`` is described as the robosuite environment that it
            wraps; any other as a gymnasium environment, by its id.

    Returns:
        Plain data from which robomimic makes the environment.
    """
    describe = getattr(getattr(env, "task", None), "robosuite_arguments", None)
    if describe is not None:
        kwargs = dict(describe())
        name, version, kind = kwargs.pop("env_name"), metadata.version("robosuite"), ROBOSUITE_ENVIRONMENT
    else:
        spec = env.spec
        name, kwargs = (spec.id, dict(spec.kwargs)) if spec is not None else (type(env).__name__, {})
        version, kind = metadata.version("gymnasium"), GYM_ENVIRONMENT
    plain: dict[str, Any] = json.loads(
        json.dumps({"env_name": name, "env_version": version, "type": kind, "env_kwargs": kwargs})
    )
    return plain


def scene_xml(env: gymnasium.Env[Any, Any]) -> str | None:
    """Write the scene as MuJoCo's XML.

    Paths of meshes and textures begin at the package ``robosuite``: robosuite puts its own folder in front when it
    loads them, and the text does not depend on where this machine keeps it.

    Args:
        env: an unwrapped environment.

    Returns:
        The XML; None if the environment is not robosuite's.
    """
    robosuite = getattr(env, "robosuite", None)
    if robosuite is None:
        return None
    xml: str = robosuite.sim.model.get_xml()
    return re.sub(r'file="[^"]*/(robosuite/models/)', r'file="\1', xml)


class ExpertRollout(Protocol):
    """What an expert did in ``T`` steps. Row ``t`` is what was there before action ``t``, and what came of it."""

    @property
    def success(self) -> bool:
        """Whether a policy should learn from it."""

    @property
    def failure(self) -> str | None:
        """Why the expert gave up, None if it did not."""

    @property
    def observations(self) -> Mapping[str, NDArray[Any]]:
        """What a policy would have seen, by key, shapes ``(T, ...)``."""

    @property
    def actions(self) -> NDArray[Any]:
        """What a policy should learn, shape ``(T, action dim)``."""

    @property
    def executed_actions(self) -> NDArray[Any]:
        """What was done, shape ``(T, action dim)``."""

    @property
    def taught(self) -> NDArray[Any]:
        """Whether a policy should learn the action, shape ``(T,)``."""

    @property
    def states(self) -> NDArray[Any]:
        """Simulator states, shape ``(T, n)``."""

    @property
    def rewards(self) -> NDArray[Any]:
        """Shape ``(T,)``."""

    @property
    def dones(self) -> NDArray[Any]:
        """Shape ``(T,)``."""


class ExpertPolicy(Protocol):
    """Plays the episode of a seed in an unwrapped environment; the same seed must give the same rollout."""

    def __call__(self, env: Any, *, seed: int) -> ExpertRollout:
        """Play it."""


@dataclass(frozen=True)
class Attempt:
    """What came of a seed.

    Attributes:
        seed: which.
        episode: what was recorded, None if it failed.
        env_args: what robomimic makes the environment from.
        failure: why it failed.
    """

    seed: int
    episode: Episode | None = None
    env_args: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""


class ExpertWorker:
    """Answers a seed with an :class:`Attempt`. An exception of the expert's is a failed attempt.

    Args:
        make_env: makes the environment, at the first seed and after an exception.
        expert: plays in it.
        next_obs: record what was seen after each action, too; the last step is left out then.
        model_file: record the scene's XML with each episode.
    """

    def __init__(
        self, make_env: Callable[[], gymnasium.Env[Any, Any]], expert: ExpertPolicy, next_obs: bool, model_file: bool
    ) -> None:
        self._make_env, self._expert = make_env, expert
        self._next_obs, self._model_file = next_obs, model_file
        self._env: gymnasium.Env[Any, Any] | None = None

    def __call__(self, seed: int) -> Attempt:
        """Play one seed. Raises what making the environment raises."""
        env = self._env = self._env or self._make_env().unwrapped
        try:
            rollout = self._expert(env, seed=seed)
            if not rollout.success:
                return Attempt(seed, failure=rollout.failure or "the task was not done at the end")
            return Attempt(seed, self._recorded(seed, rollout, env), environment_arguments(env))
        except Exception as error:
            self.close()  # its state is unknown
            return Attempt(seed, failure=f"crashed: {format_exception(error)}")

    def close(self) -> None:
        """Close the environment; the next seed gets a new one."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _recorded(self, seed: int, rollout: ExpertRollout, env: gymnasium.Env[Any, Any]) -> Episode:
        attributes: dict[str, Attribute] = {"seed": seed}
        xml = scene_xml(env) if self._model_file else None
        if xml is not None:
            attributes["model_file"] = xml
        now = slice(0, -1) if self._next_obs else slice(None)
        observations = {key: _single(values) for key, values in rollout.observations.items()}
        return Episode(
            actions=_single(rollout.actions)[now],
            observations={key: values[now] for key, values in observations.items()},
            others={
                "executed_actions": _single(rollout.executed_actions)[now],
                "states": _single(rollout.states)[now],
                "taught": np.asarray(rollout.taught, dtype=np.uint8)[now],
                "rewards": _single(rollout.rewards)[now],
                "dones": np.asarray(rollout.dones, dtype=np.int64)[now],
            },
            next_observations={key: values[1:] for key, values in observations.items()} if self._next_obs else {},
            attributes=attributes,
        )


def _single(values: NDArray[Any]) -> NDArray[Any]:
    """Policies learn in single precision, and half of a double's bytes, all noise, would not be compressed."""
    return values.astype(np.float32) if np.issubdtype(values.dtype, np.floating) else values
