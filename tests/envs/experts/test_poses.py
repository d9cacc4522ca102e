from __future__ import annotations

import numpy as np
import pytest
from specpolicy_envs.experts.geometry import (
    UP,
    Pose,
    down_facing,
    hand_for,
    nearest_rotation,
    rotation_about,
    rotation_vector,
    rotation_z,
)


def test_a_hand_that_faces_down_closes_along_the_axis() -> None:
    hand = down_facing([0.0, 2.0, 5.0])
    np.testing.assert_allclose(hand[:, 0], [0, 1, 0])
    np.testing.assert_allclose(hand[:, 2], -UP)
    assert np.linalg.det(hand) == pytest.approx(1)


def test_a_rotation_vector_leads_from_one_orientation_to_the_other() -> None:
    start, vector = rotation_z(0.4), np.array([0.3, -0.5, 0.2])
    end = rotation_about(vector / np.linalg.norm(vector), float(np.linalg.norm(vector))) @ start
    np.testing.assert_allclose(rotation_vector(start, end), vector)
    assert Pose(UP, start).angle(Pose(UP, end)) == pytest.approx(np.linalg.norm(vector))


def test_the_nearest_orientation_is_the_smallest_turn_away() -> None:
    candidates = [rotation_z(angle) for angle in (0.0, np.pi / 2, np.pi)]
    assert nearest_rotation(candidates, rotation_z(2.5)) is candidates[2]
    assert nearest_rotation(candidates, rotation_z(-0.7)) is candidates[0]


def test_a_held_thing_comes_to_its_target_with_the_hand() -> None:
    hand = Pose(np.array([0.1, 0.2, 0.3]), down_facing([1, 1, 0]))
    held = Pose(np.array([0.12, 0.25, 0.22]), rotation_about([1, 0, 0], 0.3))
    target = Pose(np.array([-0.4, 0.0, 0.5]), rotation_z(1.0))
    moved = hand_for(hand, held, target)
    in_hand = hand.rotation.T @ (held.position - hand.position)
    np.testing.assert_allclose(moved.position + moved.rotation @ in_hand, target.position, atol=1e-12)
    np.testing.assert_allclose(moved.rotation @ hand.rotation.T @ held.rotation, target.rotation, atol=1e-12)


def test_poses_move_along_the_axes_of_the_world() -> None:
    pose = Pose(np.zeros(3), rotation_z(1.0))
    np.testing.assert_allclose(pose.moved([1, 2, 3]).position, [1, 2, 3])
    np.testing.assert_allclose(pose.raised(0.5).position, [0, 0, 0.5])
    assert pose.distance(pose.raised(-0.5)) == 0.5
    np.testing.assert_array_equal(pose.turned(np.eye(3)).rotation, np.eye(3))
