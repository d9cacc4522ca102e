"""Check settings where they are made, with the same words everywhere."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any


def check_integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Check that a setting is a whole number within its range.

    Args:
        name: the setting's name, for the message.
        value: Python's, numpy's or torch's integer; booleans are none.
        least: smallest value allowed.
        most: largest value allowed; None for no limit.

    Returns:
        The value as Python's own integer.

    Raises:
        ValueError: it is no whole number, or out of range.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or whole < least or (most is not None and whole > most):
        upto = "on" if most is None else f"to {most}"
        raise ValueError(f"{name}={shown(value)}: expected a whole number from {least} {upto}")
    return whole


def check_number(
    name: str, value: Any, least: float | None = None, above: float | None = None, most: float | None = None
) -> float:
    """Check that a setting is a finite number within its range.

    Args:
        name: the setting's name, for the message.
        value: Python's or numpy's number; booleans are none.
        least: smallest value allowed; None for no limit.
        above: the value must be larger than this; None for no limit.
        most: largest value allowed; None for no limit.

    Returns:
        The value as a float.

    Raises:
        ValueError: it is no finite number, or out of range.
    """
    bounds = [f"at least {least:g}"] if least is not None else []
    bounds += [f"above {above:g}"] if above is not None else []
    bounds += [f"at most {most:g}"] if most is not None else []
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if (
        not math.isfinite(number)
        or (least is not None and number < least)
        or (above is not None and number <= above)
        or (most is not None and number > most)
    ):
        raise ValueError(f"{name}={shown(value)}: expected a finite number" + "".join(f", {each}" for each in bounds))
    return number


def check_flag(name: str, value: Any) -> bool:
    """Check that a setting is true or false.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}={shown(value)}: expected true or false")
    return value


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Check that a setting is one of the words that it may be.

    Raises:
        ValueError: it is none of ``choices``; the message lists them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={shown(value)}: expected one of {', '.join(choices)}")
    return value


def shown(value: Any, most: int = 80) -> str:
    """Write a value on one line, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 1] + "…"
