from __future__ import annotations

import numpy as np
import pytest
from point_hand import PointHand, play
from specpolicy_envs.experts.base import Arm, GraspFault, PlanFailed
from specpolicy_envs.experts.geometry import Pose, rotation_about, rotation_z
from specpolicy_envs.experts.primitives import approach_height, follow, grip, pick, reach, wait


@pytest.fixture
def hand() -> PointHand:
    return PointHand()


@pytest.fixture
def arm(hand: PointHand) -> Arm:
    return Arm(hand, 0)


def test_an_arm_without_a_goal_stays(arm: Arm) -> None:
    np.testing.assert_array_equal(arm.intended(), [0, 0, 0, 0, 0, 0, -1])
    arm.closed = True
    assert arm.intended()[6] == 1


def test_near_its_goal_an_action_is_proportional_to_the_error(arm: Arm) -> None:
    arm.goal = arm.pose.moved([0.002, 0, -0.001]).turned(rotation_z(0.02) @ arm.pose.rotation)
    np.testing.assert_allclose(arm.intended()[:6], [0.12, 0, -0.06, 0, 0, 0.12], atol=1e-9)
    arm.gain = 1.5
    np.testing.assert_allclose(arm.intended()[:6], [0.06, 0, -0.03, 0, 0, 0.06], atol=1e-9)


def test_far_from_it_an_action_is_limited_and_keeps_its_direction(hand: PointHand) -> None:
    arm = Arm(hand, 0, pace=0.8)
    arm.goal = arm.pose.moved([0.4, -0.2, 0.0])
    np.testing.assert_allclose(arm.intended()[:3], [0.8, -0.4, 0])
    arm.speed = 0.5
    np.testing.assert_allclose(arm.intended()[:3], [0.4, -0.2, 0])


def test_disturbances_have_their_size_persist_and_shrink_near_the_goal(hand: PointHand) -> None:
    def draws(goal: Pose, noise: float = 1.0) -> np.ndarray:
        arm, rng = Arm(hand, 0, sigma=0.2), np.random.default_rng(0)
        arm.goal, arm.noise = goal, noise
        return np.array([arm.disturbance(rng) for _ in range(400)])

    far, near = draws(hand.pose.raised(0.5)), draws(hand.pose)
    assert far.std() == pytest.approx(0.2, rel=0.1)
    assert np.corrcoef(far[:-1, 0], far[1:, 0])[0, 1] > 0.5
    assert 0 < near.std() < 0.5 * far.std()
    np.testing.assert_allclose(draws(hand.pose.raised(0.5), noise=0.5), far / 2)
    assert not Arm(hand, 0).disturbance(np.random.default_rng(0)).any()


def test_reach_arrives_at_what_moves(hand: PointHand, arm: Arm) -> None:
    target = Pose(np.array([0.3, 0.1, 0.4]), rotation_about([1, 0, 0], 0.5) @ hand.pose.rotation)

    def goal() -> Pose:
        nonlocal target
        target = target.moved([0.001, 0, 0])
        return target

    arrived, actions = play(hand, arm, reach(arm, goal, 0.01, 0.05))
    assert arrived and 10 < len(actions) < 60
    assert hand.pose.distance(target) < 0.01 and hand.pose.angle(target) < 0.05


def test_reach_takes_no_step_when_it_is_there_unless_it_should_settle(hand: PointHand, arm: Arm) -> None:
    assert play(hand, arm, reach(arm, hand.pose)) == (True, [])
    assert len(play(hand, arm, reach(arm, hand.pose, settle=3))[1]) == 3


def test_reach_gives_up(hand: PointHand, arm: Arm) -> None:
    arrived, actions = play(hand, arm, reach(arm, hand.pose.raised(1.0), at_most=7))
    assert not arrived and len(actions) == 7


def test_follow_ends_when_nothing_is_left_to_do(hand: PointHand, arm: Arm) -> None:
    def goal() -> Pose | None:
        return None if hand.pose.position[2] > 0.3 else hand.pose.raised(0.05)

    assert play(hand, arm, follow(arm, goal, at_most=50))[0]
    assert hand.pose.position[2] > 0.3
    assert not play(hand, arm, follow(arm, lambda: hand.pose, at_most=5))[0]


def test_grip_closes_where_the_hand_is(hand: PointHand, arm: Arm) -> None:
    arm.goal = hand.pose.raised(0.5)
    before = hand.pose
    done, actions = play(hand, arm, grip(arm, True, 9))
    assert done and len(actions) == 9
    assert arm.opening == 0 and hand.pose.distance(before) == 0
    assert len(play(hand, arm, wait(4))[1]) == 4


def test_a_funnel_leads_down_only_as_the_way_becomes_free(hand: PointHand) -> None:
    target = hand.pose.raised(-0.2)
    height = [
        approach_height(lambda aside=aside: hand.pose.moved([aside, 0, 0]), lambda: target, 0.1)().distance(target)
        for aside in (0.0, 0.003, 0.01, 0.02, 0.05)
    ]
    assert height[:2] == [0, 0]
    assert 0 < height[2] < height[3] < height[4] == pytest.approx(0.1)
    tilted = target.turned(rotation_z(0.5) @ target.rotation)
    assert approach_height(lambda: hand.pose, lambda: tilted, 0.1)().distance(target) > 0.05


THING = np.array([0.1, -0.05, 0.0])


@pytest.mark.parametrize(("slip", "closings"), [(None, 1), (GraspFault.BESIDE, 2), (GraspFault.DROPPED, 2)])
def test_a_slip_is_repaired(slip: GraspFault | None, closings: int) -> None:
    hand = PointHand(thing=THING)
    arm = Arm(hand, 0)
    at = Pose(THING, rotation_z(0.6) @ hand.pose.rotation)
    held, actions = play(hand, arm, pick(arm, lambda: at, thinnest=0.02, beside=(0, 0, -0.045), slip=slip))
    gripper = np.array([-1.0, *(action[6] for action in actions)])
    assert held and (np.diff(gripper) > 0).sum() == closings
    assert hand.opening == hand.thickness and hand.pose.distance(at) < 0.01


def test_a_fault_is_marked_but_not_its_repair() -> None:
    """Closing above a thing, and letting go of one that is held; not what leads there and not what comes after."""
    steps = {}
    for slip in (None, GraspFault.BESIDE, GraspFault.DROPPED):
        hand = PointHand(thing=THING)
        arm = Arm(hand, 0)
        at = Pose(THING, rotation_z(0.6) @ hand.pose.rotation)
        rows = []
        for _ in pick(arm, lambda at=at: at, thinnest=0.02, beside=(0, 0, -0.045), slip=slip):
            rows.append((arm.errs, arm.closed, hand.pose.distance(at)))
            hand.step(arm.intended())
        steps[slip] = rows
    assert not any(errs for errs, *_ in steps[None])
    beside, dropped = ([row for row in steps[slip] if row[0]] for slip in (GraspFault.BESIDE, GraspFault.DROPPED))
    assert all(distance > 0.03 for _, closed, distance in beside if closed) and any(closed for _, closed, _ in beside)
    assert dropped and not any(closed for _, closed, _ in dropped)
    for rows in steps.values():
        assert rows[-1][1] and not rows[-1][0]


def test_a_hand_that_holds_nothing_gives_up(hand: PointHand, arm: Arm) -> None:
    with pytest.raises(PlanFailed, match="closed 3 times and holds nothing"):
        play(hand, arm, pick(arm, lambda: Pose(THING, hand.pose.rotation), thinnest=0.02, beside=(0, 0, 0), attempts=3))
