from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from specpolicy_envs.robosuite_env import checked_action

LOW, HIGH = -np.ones(7, np.float32), np.ones(7, np.float32)


def test_inside_the_box_nothing_changes() -> None:
    action = np.linspace(-1, 1, 7)
    result = checked_action(action, LOW, HIGH)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, action)


def test_outside_the_box_is_clipped() -> None:
    result = checked_action([2.0, -3.0, 0.5, 0, 0, 0, 1.0001], LOW, HIGH)
    np.testing.assert_array_equal(result, [1, -1, 0.5, 0, 0, 0, 1])


@pytest.mark.parametrize("action", [np.zeros(6), np.zeros((1, 7)), 0.0])
def test_another_shape_is_refused(action: Any) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(7,\)"):
        checked_action(action, LOW, HIGH)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_located(bad: float) -> None:
    with pytest.raises(ValueError, match=r"not finite at index \[2\]"):
        checked_action([0, 0, bad, 0, 0, 0, 0], LOW, HIGH)


@pytest.mark.parametrize("action", ["open the gripper", [[1, 2], [3]], None])
def test_what_is_no_array_of_numbers_is_refused(action: Any) -> None:
    with pytest.raises(ValueError, match="action"):
        checked_action(action, LOW, HIGH)
