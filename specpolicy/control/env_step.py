"""Read what an environment returns, strictly: what it says decides about success."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from specpolicy.utils.checks import shown


class EnvStep(NamedTuple):
    """What one step of an environment said.

    Attributes:
        observation: in the environment's own form.
        reward: finite where that was asked for.
        over: it is terminated or truncated.
        success: ``info["success"]``, false where there is none.
        problem: ``info["problem"]``, why the observation must not be used; None if it may.
    """

    observation: Any
    reward: float
    over: bool
    success: bool
    problem: str | None


def read_reset(returned: Any) -> Any:
    """Read what ``env.reset`` returned; a mapping of two keys would unpack into their names.

    Args:
        returned: an observation and a mapping, as Gymnasium has it.

    Returns:
        The observation.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(f"env.reset returned {_form(returned)}; expected (observation, info), as Gymnasium has it")
    return returned[0]


def read_step(returned: Any, strict: bool) -> EnvStep:
    """Read what ``env.step`` returned; text, None and NaN are not taken for yes, no or a number.

    Args:
        returned: five values, as Gymnasium has it.
        strict: ``info`` must have ``success``, and the reward must be finite.

    Returns:
        What it said.

    Raises:
        KeyError: there is no ``success``.
        ValueError: anything else is not what it should be.
    """
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise ValueError(
            f"env.step returned {_form(returned)}; expected (observation, reward, terminated, truncated, info), as "
            "Gymnasium has it"
        )
    observation, reward, terminated, truncated, info = returned
    if not isinstance(info, Mapping):
        raise ValueError(f"the environment's info is {_form(info)}; expected a mapping")
    if strict and "success" not in info:
        raise KeyError("the environment's info has no 'success'; wrap it so that every step reports it as a bool")
    number = _number("reward", reward)
    if strict and not np.isfinite(number):
        raise ValueError(f"the environment's reward is {number}; expected a finite number")
    flags = [
        _flag(name, value)
        for name, value in (
            ("terminated", terminated),
            ("truncated", truncated),
            ("info['success']", info.get("success", False)),
        )
    ]
    problem = info.get("problem")
    return EnvStep(observation, number, flags[0] or flags[1], flags[2], None if problem is None else str(problem))


def _number(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"the environment's {name} is {shown(value)}; expected a number")
    return float(array.item())


def _flag(name: str, value: Any) -> bool:
    """True or false; some environments report a success as 1.0."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise ValueError(f"the environment's {name} is {shown(value)}; expected true or false")
    return bool(array.item())


def _form(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"
