"""Experts do their tasks, disturbed and after slips."""

from __future__ import annotations

import numpy as np
import pytest
from specpolicy_envs.experts import load_expert
from specpolicy_envs.experts.base import GraspFault, Randomization
from specpolicy_envs.experts.rollout import Performance, perform
from specpolicy_envs.robosuite_tasks import SquareEnv, ToolHangEnv


def closings(performance: Performance) -> int:
    return int((np.diff(performance.actions[:, 6], prepend=-1.0) > 0).sum())


def emptiest(performance: Performance) -> float:
    """The smallest distance between the fingers, m."""
    left, right = performance.observations["robot0_gripper_qpos"].T
    return float((left - right).min())


def test_square_succeeds_at_the_first_grasp(square: SquareEnv) -> None:
    played = perform(square, load_expert("square"), 1000, Randomization(slip=0))
    assert played.success and len(played) < 200
    assert closings(played) == 1 and emptiest(played) > 0.008


@pytest.mark.parametrize(("seed", "slip"), [(1002, GraspFault.BESIDE), (1003, GraspFault.DROPPED)])
def test_square_repairs_a_slip(square: SquareEnv, monkeypatch: pytest.MonkeyPatch, seed: int, slip: GraspFault) -> None:
    monkeypatch.setattr("specpolicy_envs.experts.base.EpisodeVariation.slip", lambda self, grasp: slip)
    played = perform(square, load_expert("square"), seed)
    nut = played.observations["object"][:, 2]
    assert played.success and closings(played) == 2
    first_release = int(np.argmin(np.diff(played.actions[:, 6])))
    if slip is GraspFault.BESIDE:
        assert emptiest(played) < 0.004 and nut[:first_release].max() < nut[0] + 0.01
    else:
        assert emptiest(played) > 0.008 and nut[:first_release].max() > nut[10] + 0.01


@pytest.mark.slow
def test_tool_hang_succeeds_with_slips_at_both_grasps(tool_hang: ToolHangEnv) -> None:
    played = perform(tool_hang, load_expert("tool_hang"), 1032, Randomization(slip=1))
    assert played.success and played.failure is None and len(played) < 550
    assert closings(played) == 4
    assembled, hung = played.observations["object"][:, -2:].T
    assert assembled.argmax() < hung.argmax()
    assert assembled[assembled.argmax() + 20 :].all(), "nothing knocks the frame over"
    _, info = tool_hang.reset(options={"state": played.states[-1]})
    assert info == {"success": True}
