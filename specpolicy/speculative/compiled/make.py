"""From any sampler to its compiled twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..baseline import SchedulerSampler
from ..process import ReverseProcess
from ..sampler import SequentialSampler, SpeculativeSampler
from .chain import CompiledChain
from .runners import Backend
from .sampler import CompiledSampler


def compile_sampler(
    sampler: Any, backend: Backend | None = None, batches: Sequence[int] | None = None
) -> CompiledSampler | CompiledChain:
    """The same sampler with compiled or captured steps; what is exact stays exact.

    Args:
        sampler: a :class:`SpeculativeSampler` without an adaptive window, a :class:`SequentialSampler`, or a
            :class:`SchedulerSampler` of ``DDIMScheduler`` with η = 0.
        backend: see :data:`Backend`; None chooses by device.
        batches: batch sizes to prepare, rising; a batch is filled up to the least that holds it. None: as they come.

    Raises:
        ValueError: there is no compiled form of it; the message says what has one.
    """
    if isinstance(sampler, (CompiledSampler, CompiledChain)):
        return sampler
    if isinstance(sampler, SpeculativeSampler):
        return CompiledSampler(sampler, backend, batches=batches)
    if isinstance(sampler, SequentialSampler):
        return CompiledChain(sampler.process, sampler.exact, backend, batches)
    if isinstance(sampler, SchedulerSampler) and not sampler.step_arguments.get("eta", 0.0):
        return CompiledChain(ReverseProcess.deterministic(sampler.scheduler), False, backend, batches)
    raise ValueError(
        f"{sampler!r} has no compiled form; SpeculativeSampler, SequentialSampler and SchedulerSampler of a "
        "DDIMScheduler with eta = 0 have one"
    )
