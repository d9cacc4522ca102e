"""The network as the samplers see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specpolicy.speculative.inputs import kind_of

Cond = Any
"""A tensor with leading dimension B, any nesting of dict, tuple and list of such tensors, or None."""


@runtime_checkable
class Denoiser(Protocol):
    """Predicts ε, x0 or v (whatever the scheduler's ``prediction_type`` says) at noisy points.

    ``x`` has shape ``(N, *event)``, ``timestep`` shape ``(N,)`` (the scheduler's own timesteps), ``cond`` leading
    dimension N; the result has the shape of ``x``. Rows must not influence one another.
    """

    def __call__(self, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        """Evaluate the network once, on N rows."""
        ...


class PreparedCondition(NamedTuple):
    """A condition, and what the network has computed from it once for all evaluations of a chunk.

    Attributes:
        raw: the condition as it was handed in; initial guesses and drafters see this alone.
        rows: what the network made of it, shape ``(B, features)``.
    """

    raw: Cond
    rows: Tensor


@runtime_checkable
class PreparingDenoiser(Denoiser, Protocol):
    """A denoiser that computes once a chunk what depends on the condition alone; this is optional.

    It is then called with rows of the prepared condition, and with rows of plain ones as any other denoiser: both give
    the same output up to rounding.
    """

    def prepare_condition(self, cond: Cond) -> Cond:
        """Return a :class:`PreparedCondition`, or ``cond`` itself where there is nothing to gain."""
        ...


def prepared(denoiser: Denoiser, cond: Cond) -> Cond:
    """Prepare a condition for all evaluations of a chunk, if the denoiser can.

    Args:
        denoiser: the network.
        cond: conditions with leading dimension B.

    Returns:
        What the denoiser is to be called with, row by row; ``cond`` itself for denoisers that prepare nothing.
    """
    if isinstance(cond, PreparedCondition) or not isinstance(denoiser, PreparingDenoiser):
        return cond
    return denoiser.prepare_condition(cond)


def raw_condition(cond: Cond) -> Cond:
    """Undo :func:`prepared`.

    Args:
        cond: prepared or not.

    Returns:
        The condition as the caller of the sampler knows it.
    """
    return cond.raw if isinstance(cond, PreparedCondition) else cond


class DenoiserError(RuntimeError):
    """A denoiser returned the wrong shape, NaN or infinity."""


def gather_rows(cond: Cond, index: Int[Tensor, " m"]) -> Cond:
    """Select rows of every tensor in a condition.

    Args:
        cond: with leading dimension B.
        index: rows to take, shape ``(m,)``.

    Returns:
        The same nesting, with leading dimension m.

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
    raise TypeError(f"cond holds a {kind_of(cond)}; expected tensors in dicts, tuples and lists")


def concatenate_rows(conds: Sequence[Cond]) -> Cond:
    """Concatenate conditions of one kind.

    Args:
        conds: at least one; nestings of the same form.

    Returns:
        The same nesting, with the leading dimensions added up.

    Raises:
        TypeError: a condition holds something else than tensors in dicts, tuples and lists.
        ValueError: they have different forms.
    """
    first = conds[0]
    if any(type(each) is not type(first) for each in conds):
        raise ValueError(f"conditions of different kinds: {sorted({kind_of(each) for each in conds})}")
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(list(conds))
    if isinstance(first, dict):
        if any(each.keys() != first.keys() for each in conds):
            raise ValueError(f"conditions have different keys: {[sorted(each) for each in conds]}")
        return {key: concatenate_rows([each[key] for each in conds]) for key in first}
    if isinstance(first, (tuple, list)):
        parts = [concatenate_rows(each) for each in zip(*conds, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    raise TypeError(f"cond holds a {kind_of(first)}; expected tensors in dicts, tuples and lists")


def call_denoiser(
    denoiser: Denoiser, x: Float[Tensor, "n ..."], timestep: Tensor, cond: Cond
) -> Float[Tensor, "n ..."]:
    """Evaluate the network once and check its output.

    Args:
        denoiser: the network.
        x: noisy points, shape ``(n, *event)``.
        timestep: the scheduler's timestep of each, shape ``(n,)``.
        cond: conditions with leading dimension n.

    Returns:
        The network's output, of the shape of ``x``.

    Raises:
        DenoiserError: the shape differs from that of ``x``, or a value is no real number, NaN or infinite.
    """
    output = denoiser(x, timestep, cond)
    check_output(output, x, timestep)
    return output


def check_output(output: Any, x: Float[Tensor, "n ..."], timestep: Tensor) -> None:
    """Check what a network has returned.

    Args:
        output: of the network.
        x: noisy points that it was given, shape ``(n, *event)``.
        timestep: of each, shape ``(n,)``.

    Raises:
        DenoiserError: the shape differs from that of ``x``, or a value is NaN or infinite.
    """
    if not isinstance(output, Tensor) or output.shape != x.shape:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        hint = " (return its .sample)" if isinstance(getattr(output, "sample", None), Tensor) else ""
        raise DenoiserError(
            f"denoiser returned {got} for input {tuple(x.shape)}; it must return the shape of its input{hint}"
        )
    if not output.is_floating_point():
        raise DenoiserError(f"denoiser returned {output.dtype}; it must return floating-point numbers")
    if not torch.isfinite(output).all():
        bad = sorted({int(t) for t in timestep[~torch.isfinite(output.flatten(1)).all(dim=1)]})
        raise DenoiserError(
            f"denoiser returned NaN or infinity at timesteps {bad[:8]}; check its weights, inputs and dtype"
        )
