from __future__ import annotations

import numpy as np
import pytest
from specpolicy_envs.experts import load_expert
from specpolicy_envs.experts.base import Randomization
from specpolicy_envs.experts.rollout import HOLD, Performance, perform
from specpolicy_envs.experts.transport import TransportExpert
from specpolicy_envs.robosuite_tasks import TransportEnv

SEED = 1007
HAMMER, TRASH, KNOB = slice(0, 3), slice(7, 10), slice(14, 17)
NEAR = 0.1  # metres from the hammer's middle to a hand that holds it


class Beginning(TransportExpert):
    """The first steps are enough to compare, and to see a lid slip."""

    horizon = 50


@pytest.fixture(scope="module")
def performance(transport: TransportEnv) -> Performance:
    expert = load_expert("transport")
    assert isinstance(expert, TransportExpert)
    return perform(transport, expert, SEED)


def holding(performance: Performance, arm: int) -> np.ndarray:
    """Whether a hand has something as thick as the handle between its fingers and the hammer near, each step."""
    hand = performance.observations[f"robot{arm}_eef_pos"]
    opening = np.abs(performance.observations[f"robot{arm}_gripper_qpos"]).sum(axis=1)
    near = np.linalg.norm(performance.observations["object"][:, HAMMER] - hand, axis=1) < NEAR
    result: np.ndarray = near & (opening > 0.02) & (opening < 0.04)
    return result


@pytest.mark.slow
def test_it_succeeds_with_disturbances_and_quickly(performance: Performance) -> None:
    assert performance.success, performance.failure
    assert performance.rewards[-HOLD:].all()
    assert len(performance) < 330
    assert not np.array_equal(performance.actions, performance.executed_actions)
    assert np.abs(performance.actions).max() <= 1


def test_the_hammer_goes_from_hand_to_hand_in_the_air(performance: Performance) -> None:
    left, right = (np.flatnonzero(holding(performance, arm)) for arm in (0, 1))
    both = np.intersect1d(left, right)
    assert left[0] < right[0] <= both[0] <= left[-1] < right[-1]
    assert len(both) >= 3
    heights = performance.observations["object"][:, 2]
    assert (heights[both] > 1.0).all()
    assert heights[0] < 0.85  # in the bin
    assert performance.observations["object"][0, 1] < -0.4  # on the left table
    assert performance.observations["object"][-1, 1] > 0.3  # on the right one


def test_lid_and_trash_are_out_of_the_way_before_the_handover(performance: Performance) -> None:
    handover = np.flatnonzero(holding(performance, 1))[0]
    lid, trash = (performance.observations["object"][:, thing] for thing in (KNOB, TRASH))
    assert np.linalg.norm(lid[handover] - lid[0]) > 0.25
    assert trash[handover, 0] - trash[0, 0] > 0.25
    trash_in_its_bin = performance.observations["object"][:, -1]
    assert trash_in_its_bin[handover]
    assert not trash_in_its_bin[0]


def test_both_arms_work_at_once(performance: Performance) -> None:
    moving = [np.abs(performance.actions[:, 7 * arm : 7 * arm + 3]).max(axis=1) > 0.3 for arm in (0, 1)]
    assert np.logical_and(*moving).mean() > 0.25


def test_the_same_seed_gives_the_same_bytes(transport: TransportEnv, performance: Performance) -> None:
    again = perform(transport, Beginning(), SEED)
    assert len(again) == Beginning.horizon
    for name in ("states", "actions", "executed_actions"):
        assert getattr(again, name).tobytes() == getattr(performance, name)[: len(again)].tobytes()


@pytest.mark.slow
def test_a_slip_is_a_grasp_that_is_tried_again(transport: TransportEnv) -> None:
    grasps = []
    for slip in (0.0, 1.0):
        variety = Randomization(sigma=0.0, slowest=1.0, jitter=0.0, slip=slip)
        closed = perform(transport, Beginning(), SEED, variety).actions[:, 6] > 0
        grasps.append(int(np.count_nonzero(np.diff(closed.astype(int)) == 1)))
    assert grasps == [1, 2]
