"""Observations: one step or all of them, remembered or refused with words that help."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving_fakes import SPEC, observation

from specpolicy.policies.observations import ObservationSpec
from specpolicy.serving.protocol import RequestRefused
from specpolicy.serving.session import StepCollector


def poses(history: StepCollector) -> list[float]:
    return [float(step[0]) for step in history.window()["pose"]]


def test_single_steps_are_remembered_as_far_as_the_policy_looks() -> None:
    history = StepCollector(SPEC)
    history.add(observation(1))
    assert poses(history) == [1, 1], "the first is repeated, as at the start of an episode"
    history.add(observation(2))
    history.add(observation(3))
    assert poses(history) == [2, 3]
    assert {name: part.shape for name, part in history.window().items()} == {"pose": (2, 3), "grip": (2, 1)}
    history.clear()
    history.add(observation(4))
    assert poses(history) == [4, 4]


def test_longer_horizons_fill_up_from_the_front() -> None:
    history = StepCollector(ObservationSpec({"pose": 1}, horizon=4))
    for value in (1, 2):
        history.add({"pose": [value]})
    assert poses(history) == [1, 1, 1, 2]


def test_a_whole_history_replaces_what_was_remembered() -> None:
    history = StepCollector(SPEC)
    history.add(observation(1))
    history.add({"pose": np.array([[5, 0, 0], [6, 0, 0]]), "grip": np.zeros((2, 1))})
    assert poses(history) == [5, 6]
    history.add(observation(7))
    assert poses(history) == [6, 7]


def test_lists_and_any_numeric_dtype_will_do() -> None:
    history = StepCollector(SPEC)
    assert history.add({"pose": [1, 2.5, True], "grip": np.array([1], ">i2"), "prompt": "go", "at": 3}) == (
        "at",
        "prompt",
    )
    stacked = history.window()
    assert stacked["pose"][1].tolist() == [1, 2.5, 1] and stacked["grip"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"pose": np.zeros(4)},
            r"\['pose'\] has shape \(4,\); expected \(3,\) for the present step, or \(2, 3\)",
        ),
        ({"pose": np.zeros((1, 2, 3))}, r"has shape \(1, 2, 3\)"),
        ({"pose": np.zeros((2, 3))}, "some parts are one step and some a history"),
        ({"pose": [0, float("nan"), 0]}, "contains NaN"),
        ({"pose": np.array([0, 1e300, 0])}, "beyond float32"),
        ({"pose": ["1", "2", "3"]}, "expected a numeric array or a list of numbers"),
        ({"pose": [[1, 2, 3], [4, 5]]}, "is not an array"),
        ({"pose": [10**400, 0, 0]}, "is not an array"),
        ({"pose": None}, "is None; expected a numeric array"),
        ({"pose": {"x": 1}}, "expected a numeric array"),
        ({"grip": 1.0}, "expected a numeric array"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_remembered(change: dict[str, Any], says: str) -> None:
    history = StepCollector(SPEC)
    history.add(observation(1))
    with pytest.raises(RequestRefused, match=says):
        history.add(observation(2) | change)
    assert poses(history) == [1, 1]


def test_a_missing_part_is_named_with_what_is_expected() -> None:
    with pytest.raises(
        RequestRefused, match=r"lacks \['grip'\]; expected pose \(3,\), grip \(1,\).*there are \['pose'\]"
    ):
        StepCollector(SPEC).add({"pose": np.zeros(3)})
