"""The network as the samplers see it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Cond = Any
"""A tensor with leading dimension B, any nesting of dict, tuple and list of such tensors, or None."""


@runtime_checkable
class Denoiser(Protocol):
    """Predicts ε, x0 or v (whatever the scheduler's ``prediction_type`` says) at noisy points.

    ``x`` has shape ``(N, *event)``, ``timestep`` shape ``(N,)`` (the scheduler's own timesteps), ``cond`` leading
    dimension N; the result has the shape of ``x``. Rows must not influence one another.
    """

    def __call__(self, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        """One network pass over N rows."""
        ...


class DenoiserError(RuntimeError):
    """A denoiser returned the wrong shape, NaN or infinity."""


def gather_rows(cond: Cond, index: Tensor) -> Cond:
    """Rows ``index`` of every tensor in ``cond``.

    Raises:
        TypeError: ``cond`` holds something else than tensors in dicts, tuples and lists.
    """
    if cond is None:
        return None
    if isinstance(cond, Tensor):
        return cond[index]
    if isinstance(cond, dict):
        return {key: gather_rows(value, index) for key, value in cond.items()}
    if isinstance(cond, (tuple, list)):
        parts = [gather_rows(value, index) for value in cond]
        return type(cond)(*parts) if hasattr(cond, "_fields") else type(cond)(parts)
    raise TypeError(f"cond holds a {type(cond).__name__}; expected tensors in dicts, tuples and lists")


def check_cond(cond: Cond, batch: int, path: str = "cond") -> None:
    """Raise ``ValueError`` unless every tensor in ``cond`` has leading dimension ``batch``."""
    if isinstance(cond, Tensor):
        if cond.ndim == 0 or cond.shape[0] != batch:
            raise ValueError(f"{path} has shape {tuple(cond.shape)}; expected leading dimension {batch} as in noise")
    elif isinstance(cond, dict):
        for key, value in cond.items():
            check_cond(value, batch, f"{path}[{key!r}]")
    elif isinstance(cond, (tuple, list)):
        for position, value in enumerate(cond):
            check_cond(value, batch, f"{path}[{position}]")
    elif cond is not None:
        raise TypeError(f"{path} is a {type(cond).__name__}; expected tensors in dicts, tuples and lists")


def state_dtype(noise: Tensor) -> torch.dtype:
    """What chains that start from ``noise`` are kept in: float32 or better. The network gets the noise's own dtype.

    Raises:
        ValueError: ``noise`` is no batch of floating-point events.
    """
    if noise.ndim < 2 or not noise.is_floating_point():
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and dtype {noise.dtype}; expected floating point (batch, *event)"
        )
    return torch.promote_types(noise.dtype, torch.float32)


def call_denoiser(
    denoiser: Denoiser, x: Float[Tensor, "n ..."], timestep: Tensor, cond: Cond
) -> Float[Tensor, "n ..."]:
    """One network pass, with its output checked.

    Raises:
        DenoiserError: shape differs from ``x``, or a value is NaN or infinite.
    """
    output = denoiser(x, timestep, cond)
    if not isinstance(output, Tensor) or output.shape != x.shape:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DenoiserError(
            f"denoiser returned {got} for input {tuple(x.shape)}; it must return the shape of its input"
        )
    if not torch.isfinite(output).all():
        bad = sorted({int(t) for t in timestep[~torch.isfinite(output.flatten(1)).all(dim=1)]})
        raise DenoiserError(
            f"denoiser returned NaN or infinity at timesteps {bad[:8]}; check its weights, inputs and dtype"
        )
    return output
