"""What samplers accept: noise, conditions, generators and seeds, checked in one place with the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specpolicy.utils.checks import check_integer

_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for all chains, a list with one for each chain, or None for torch's default."""


def kind_of(value: object) -> str:
    """Name the type of a value as its users do, such as ``numpy.ndarray``.

    Args:
        value: anything.

    Returns:
        The name, without the module for builtins.
    """
    cls = type(value)
    module = cls.__module__.split(".")[0]
    return cls.__name__ if module == "builtins" else f"{module}.{cls.__name__}"


def check_part(name: str, part: object, kind: type, example: str) -> None:
    """Check a part that a sampler is made of.

    Args:
        name: of the argument.
        part: what was given; None stands for the default.
        kind: class that it must be of.
        example: one, for the message.

    Raises:
        TypeError: it is of another class, or the class itself.
    """
    if part is not None and not isinstance(part, kind):
        given = f"the class {part.__name__}" if isinstance(part, type) else f"a {kind_of(part)}"
        raise TypeError(f"{name} is {given}; expected an object such as {example}")


def seeded_generator(seed: Any) -> torch.Generator:
    """Make a CPU generator from a seed.

    Args:
        seed: a whole number from 0 on; numpy integers are taken.

    Returns:
        A generator of its own.

    Raises:
        ValueError: no such number.
    """
    return torch.Generator().manual_seed(check_integer("seed", seed, 0, 2**63 - 1))


def check_noise(noise: Any) -> torch.dtype:
    """Check the noise that chains start from.

    Args:
        noise: batch of floating-point events, shape ``(B, *event)``.

    Returns:
        The dtype of the chains, see :func:`state_dtype`.

    Raises:
        TypeError: ``noise`` is no tensor.
        ValueError: it is not a batch of finite floating-point events.
    """
    if not isinstance(noise, Tensor):
        hint = "; torch.from_numpy(noise) makes one" if kind_of(noise).startswith("numpy.") else ""
        raise TypeError(f"noise is a {kind_of(noise)}; expected a torch tensor of shape (batch, *event){hint}")
    if noise.ndim < 2 or not noise.is_floating_point():
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and dtype {noise.dtype}; expected floating point (batch, *event)"
        )
    odd = "sparse" if noise.layout != torch.strided else "on the meta device, without values" if noise.is_meta else ""
    odd = "of events without numbers" if len(noise) and not noise.numel() else odd
    odd = f"of dtype {noise.dtype}" if noise.dtype not in _NUMBERS else odd
    if odd:
        raise ValueError(f"noise is {odd}; expected a dense float16, bfloat16, float32 or float64 tensor")
    if not bool(noise.isfinite().all()):
        raise ValueError("noise holds NaN or infinity; expected standard normal numbers")
    return state_dtype(noise)


def state_dtype(noise: Tensor) -> torch.dtype:
    """Choose what chains are computed in.

    Args:
        noise: that they start from, of any floating-point dtype.

    Returns:
        float32 or better; the network gets the noise's own dtype.
    """
    return torch.promote_types(noise.dtype, torch.float32)


def check_generators(generator: Any, batch: int) -> Generators:
    """Check the generators of a batch of chains.

    Args:
        generator: None, a ``torch.Generator``, or a sequence with one for each chain.
        batch: number of chains.

    Returns:
        ``generator``; a sequence as a list.

    Raises:
        TypeError: it is, or holds, something else, such as a numpy generator or a seed.
        ValueError: the sequence does not have one for each chain.
    """
    expected = "expected a torch.Generator, a list with one for each chain, or None"
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if isinstance(generator, str | bytes) or not isinstance(generator, Sequence):
        raise TypeError(
            f"generator is a {kind_of(generator)}; {expected}: torch.Generator().manual_seed(seed) makes one"
        )
    generators = list(generator)
    for chain, each in enumerate(generators):
        if not isinstance(each, torch.Generator):
            raise TypeError(
                f"generator[{chain}] is a {kind_of(each)}; {expected}: torch.Generator().manual_seed(seed) makes one"
            )
    if len(generators) != batch:
        raise ValueError(f"{len(generators)} generators for a batch of {batch}; give one, or one for each chain")
    return generators


def check_cond(cond: Any, batch: int, path: str = "cond") -> None:
    """Check that every tensor of a condition has a row for each chain.

    Args:
        cond: a tensor, nested dicts, tuples and lists of tensors, or None.
        batch: number of chains.
        path: name of ``cond`` in messages.

    Raises:
        TypeError: something else than tensors is in it.
        ValueError: a tensor has another leading dimension.
    """
    if isinstance(cond, Tensor):
        if cond.ndim == 0 or cond.shape[0] != batch:
            raise ValueError(f"{path} has shape {tuple(cond.shape)}; expected leading dimension {batch} as in noise")
    elif isinstance(cond, dict):
        for key, value in cond.items():
            check_cond(value, batch, f"{path}[{key!r}]")
    elif isinstance(cond, tuple | list):
        for position, value in enumerate(cond):
            check_cond(value, batch, f"{path}[{position}]")
    elif cond is not None:
        raise TypeError(f"{path} is a {kind_of(cond)}; expected tensors in dicts, tuples and lists")
