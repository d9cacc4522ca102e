"""Turn six-dimensional rotations (Zhou et al. 2019) into what a controller takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TARGETS = ("axis_angle", "euler_xyz")
"""Three numbers each: a rotation vector in radians; angles in radians about x, y and z."""


def convert_rotations(
    actions: Float[Tensor, "*n dim"], rotations: Sequence[Mapping[str, Any]]
) -> Float[Tensor, "*n shorter"]:
    """Replace six coordinates by three for each rotation in an action.

    Args:
        actions: in the environment's units.
        rotations: ``{"start": first of six coordinates, "to": one of TARGETS}``, rising and not overlapping.

    Returns:
        Actions that are shorter by three coordinates a rotation.
    """
    parts, end = [], 0
    for rotation in rotations:
        start = rotation["start"]
        matrix = matrix_from_6d(actions[..., start : start + 6].double())
        turned = axis_angle(matrix) if rotation["to"] == "axis_angle" else euler_xyz(matrix)
        parts += [actions[..., end:start], turned.to(actions.dtype)]
        end = start + 6
    return torch.cat([*parts, actions[..., end:]], dim=-1)


def check_rotations(rotations: Sequence[Mapping[str, Any]], action_dim: int) -> None:
    """Raise ``ValueError`` unless the rotations lie in an action of ``action_dim`` coordinates, one after another."""
    end = 0
    for rotation in rotations:
        start, target = rotation.get("start"), rotation.get("to")
        if set(rotation) != {"start", "to"} or not isinstance(start, int) or target not in TARGETS:
            raise ValueError(f"rotations: {dict(rotation)}; expected a start and one of {TARGETS} as to")
        if start < end or start + 6 > action_dim:
            raise ValueError(f"rotations: six coordinates from {start} on do not fit into {action_dim}, or overlap")
        end = start + 6


def matrix_from_6d(rotation: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 3 3"]:
    """Orthogonalize two vectors, which become the first two rows (Zhou et al. 2019, section B; Gram–Schmidt)."""
    first = torch.nn.functional.normalize(rotation[..., :3], dim=-1)
    second = rotation[..., 3:] - (first * rotation[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


def axis_angle(matrix: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3"]:
    """Turn rotation matrices into rotation vectors.

    By way of the quaternion, computed from its largest component, so that no rotation is ill-conditioned. Its sign is
    that of the component: some vectors are longer than π, as they are in robomimic and PyTorch3D, and mean the same
    rotation as the shorter one in the opposite direction.
    """
    m = {(i, j): matrix[..., i, j] for i in range(3) for j in range(3)}
    # row c holds the quaternion (w, x, y, z) times four times its component c
    table = torch.stack(
        [
            torch.stack(row, dim=-1)
            for row in (
                (1 + m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]),
                (m[2, 1] - m[1, 2], 1 + m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[0, 2] + m[2, 0]),
                (m[0, 2] - m[2, 0], m[1, 0] + m[0, 1], 1 - m[0, 0] + m[1, 1] - m[2, 2], m[2, 1] + m[1, 2]),
                (m[1, 0] - m[0, 1], m[2, 0] + m[0, 2], m[2, 1] + m[1, 2], 1 - m[0, 0] - m[1, 1] + m[2, 2]),
            )
        ],
        dim=-2,
    )
    largest = table.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    quaternion = torch.take_along_dim(table, largest[..., None, None], dim=-2).squeeze(-2)
    quaternion = torch.nn.functional.normalize(quaternion, dim=-1)
    vector = quaternion[..., 1:]
    length = vector.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(length, quaternion[..., :1])
    # sin(angle / 2) / angle tends to one half
    return torch.where(length > 1e-12, angle / length.clamp(min=1e-12), 2.0) * vector


def euler_xyz(matrix: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3"]:
    """Turn rotation matrices R = Rx(a) Ry(b) Rz(c) into the angles a, b, c."""
    second = torch.asin(matrix[..., 0, 2].clamp(-1, 1))
    first = torch.atan2(-matrix[..., 1, 2], matrix[..., 2, 2])
    third = torch.atan2(-matrix[..., 0, 1], matrix[..., 0, 0])
    return torch.stack([first, second, third], dim=-1)
