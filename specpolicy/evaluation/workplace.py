"""A policy, its samplers and environments, opened and at work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType

import torch

from .pool import EnvPool
from .protocols import Policy, Sampler
from .rollout import rollout
from .tap import ObservationTap
from .units import Batch, Unit

KEPT_OBSERVATIONS = 64


class Workplace:
    """Where units of one task are run. Use it as a context manager: it closes the environments.

    Args:
        policy: whom to ask.
        samplers: by name.
        pool: where episodes run.
        crash_limit: see :func:`rollout`.
        threads: torch's threads until it is closed; None leaves them as they are.
    """

    def __init__(
        self,
        policy: Policy,
        samplers: Mapping[str, Sampler],
        pool: EnvPool,
        crash_limit: int | None = 20,
        threads: int | None = None,
    ) -> None:
        self._tap = ObservationTap(policy, limit=KEPT_OBSERVATIONS)
        self._samplers, self._pool, self._crash_limit = samplers, pool, crash_limit
        self._former_threads = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)

    def run(self, units: Iterable[Unit]) -> Iterator[Batch]:
        """Run one unit after the other and hand out each episode as soon as it has ended.

        Raises:
            EvaluationAborted: nothing but crashes came. Batches handed out before remain valid.
        """
        for unit in units:
            sampler = self._samplers[unit.sampler]
            for record in rollout(
                self._tap, sampler, self._pool, unit.keys, task=unit.task, crash_limit=self._crash_limit
            ):
                yield Batch(unit.task, (record,), self._tap.observations)

    def close(self) -> None:
        """Close the environments and give the threads back."""
        self._pool.close()
        torch.set_num_threads(self._former_threads)

    def __enter__(self) -> Workplace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
