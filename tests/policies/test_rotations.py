"""Six-dimensional rotations against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from specpolicy.policies.rotations import (
    axis_angle,
    check_rotations,
    convert_rotations,
    euler_xyz,
    matrix_from_6d,
)

TURNS = Rotation.random(200, random_state=0)
MATRICES = torch.from_numpy(TURNS.as_matrix())


def test_the_two_vectors_are_rows() -> None:
    vectors = MATRICES[:, :2].flatten(1)
    torch.testing.assert_close(matrix_from_6d(vectors), MATRICES)
    skewed = torch.cat([3 * vectors[:, :3], 0.5 * vectors[:, 3:] + 0.7 * vectors[:, :3]], dim=1)
    torch.testing.assert_close(matrix_from_6d(skewed), MATRICES)


def test_axis_and_angle_mean_the_same_rotation() -> None:
    """Vectors may be longer than π: they are the same rotation as the shorter one the other way around."""
    vectors = axis_angle(MATRICES).numpy()
    np.testing.assert_allclose(Rotation.from_rotvec(vectors).as_matrix(), TURNS.as_matrix(), atol=1e-9)
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths.max() < 2 * np.pi and (lengths > np.pi).any()


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, np.pi - 1e-7, np.pi])
def test_small_and_half_turns(angle: float) -> None:
    vector = angle * np.array([0.6, 0.0, 0.8])
    found = axis_angle(torch.from_numpy(Rotation.from_rotvec(vector).as_matrix()))
    np.testing.assert_allclose(found, vector, atol=1e-7)


def test_euler_angles() -> None:
    found = euler_xyz(MATRICES).numpy()
    np.testing.assert_allclose(Rotation.from_euler("XYZ", found).as_matrix(), TURNS.as_matrix(), atol=1e-9)


def test_where_they_stand_in_an_action() -> None:
    actions = torch.cat([torch.full((200, 2), 7.0), MATRICES[:, :2].flatten(1).float(), torch.full((200, 1), 8.0)], 1)
    turned = convert_rotations(actions, [{"start": 2, "to": "euler_xyz"}])
    assert turned.shape == (200, 6) and bool((turned[:, :2] == 7).all()) and bool((turned[:, 5] == 8).all())
    both = convert_rotations(torch.cat([actions, actions], 1), [{"start": 2, "to": "euler_xyz"},
                                                                {"start": 11, "to": "axis_angle"}])  # fmt: skip
    torch.testing.assert_close(both[:, :6], turned)
    assert both.shape == (200, 12)


@pytest.mark.parametrize(
    "wrong",
    [
        [{"start": 2, "to": "matrix"}],
        [{"start": 5, "to": "euler_xyz"}],
        [{"start": 0, "to": "euler_xyz"}, {"start": 4, "to": "euler_xyz"}],
        [{"start": "0", "to": "euler_xyz"}],
        [{"to": "euler_xyz"}],
    ],
)
def test_rotations_that_do_not_fit(wrong: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match="rotations"):
        check_rotations(wrong, 10)
