"""Units of work in the workers of a Ray cluster, on one machine or many.

Each worker opens its own policy and environments and keeps them from unit to unit. A unit's records come back together;
a worker that dies takes nothing but its unit with it, which another worker does again from the start.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from specpolicy.evaluation.comparison import Comparison, TaskRunner
from specpolicy.evaluation.launchers.local import LauncherError
from specpolicy.rollout.episodes import Batch, Unit
from specpolicy.rollout.runner import EvaluationAborted
from specpolicy.utils.extras import require

_log = logging.getLogger(__name__)
PATIENCE_S = 60.0


@dataclass(frozen=True)
class RayLauncher:
    """Runs units in Ray workers. Checkpoints must lie at the same path on every machine.

    Attributes:
        address: of a running cluster, or ``"auto"`` for the one that this machine belongs to; None starts one on this
            machine for as long as the run takes, unless this process is connected to one already.
        num_cpus: CPUs of a cluster that is started here; None for all of the machine's.
        cpus_per_worker: CPUs that a worker claims; its environments' processes share them. Torch takes as many threads
            unless the comparison says otherwise.
        gpus_per_worker: GPUs that a worker claims; parts of one are allowed.
        attempts: how often a unit is tried whose workers die.
    """

    address: str | None = None
    num_cpus: int | None = None
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    attempts: int = 3

    def run(self, comparisons: Mapping[str, Comparison], units: Sequence[Unit]) -> Iterator[Batch]:
        """See :class:`Launcher`."""
        if not units:
            return
        ray = require("ray", "ray")
        with self.connected(ray):
            make_worker = ray.remote(num_cpus=self.cpus_per_worker, num_gpus=self.gpus_per_worker)(_Worker).remote
            shared = ray.put(dict(comparisons))
            crew = _Crew(ray, lambda: make_worker(shared), self._room(ray, len(units)))
            try:
                yield from self._run(crew, units)
            finally:
                crew.dismiss()

    def _run(self, crew: _Crew, units: Sequence[Unit]) -> Iterator[Batch]:
        queue, deaths = deque(units), Counter[Unit | None]()
        while queue or crew.at_work:
            while queue and crew.idle:
                crew.assign(queue.popleft())
            unit, answer = crew.next()
            if isinstance(answer, _Died):
                deaths[unit] += 1
                if deaths[unit] >= self.attempts:
                    raise LauncherError(
                        f"workers died {deaths[unit]} times {_over(unit)}: {answer.reason}. What has ended is saved."
                    )
                _log.warning("a worker died %s, another one takes over: %s", _over(unit), answer.reason)
                crew.enlarge()
                if unit is not None:
                    queue.appendleft(unit)
            elif answer is None:
                deaths[None] = 0
            else:
                yield answer.batch
                if answer.aborted is not None:
                    raise EvaluationAborted(answer.aborted)

    def _room(self, ray: Any, wanted: int) -> int:
        """How many workers fit into the cluster, at most ``wanted``."""
        there = ray.cluster_resources()
        room = wanted
        for resource, claimed in (("CPU", self.cpus_per_worker), ("GPU", self.gpus_per_worker)):
            if claimed > 0:
                room = min(room, int(there.get(resource, 0) / claimed))
            if room < 1:
                raise LauncherError(
                    f"no worker fits into the cluster: each claims {claimed:g} {resource}, "
                    f"the cluster has {there.get(resource, 0):g}"
                )
        return room

    @contextmanager
    def connected(self, ray: Any) -> Iterator[None]:
        """Be connected to a cluster inside the block. Raises :class:`LauncherError` if there is none.

        Args:
            ray: the module.
        """
        if ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"address": self.address or "local"}
        if self.address is None:
            options |= {"num_cpus": self.num_cpus, "include_dashboard": False}
        try:
            _require_listener(self.address)
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise LauncherError(
                f"no Ray cluster at launcher.address={self.address} ({error}); start one with `ray start --head`, or "
                "leave launcher.address out to have one for this run"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


@dataclass(frozen=True)
class _Done:
    """What a unit gave; ``aborted`` says why it was given up before its end."""

    batch: Batch
    aborted: str | None


@dataclass(frozen=True)
class _Died:
    """The worker is no more."""

    reason: str


class _Worker:
    """Lives in a Ray worker process; keeps the last task's policy and environments open."""

    def __init__(self, comparisons: Mapping[str, Comparison]) -> None:
        self._comparisons = comparisons
        self._task: str | None = None
        self._runner: TaskRunner | None = None

    def ready(self) -> None:
        """Answers once the worker has started."""

    def run(self, unit: Unit) -> _Done:
        if self._runner is None or self._task != unit.task:
            if self._runner is not None:
                self._runner.close()
            self._task, self._runner = unit.task, self._comparisons[unit.task].open()
        batches: list[Batch] = []
        aborted = None
        try:
            batches.extend(self._runner.run([unit]))
        except EvaluationAborted as error:
            aborted = str(error)
        observations = batches[-1].observations if batches else ()
        records = tuple(record for batch in batches for record in batch.records)
        return _Done(Batch(unit.task, records, observations), aborted)


class _Crew:
    """The workers: who is idle, and who has which unit."""

    def __init__(self, ray: Any, hire: Callable[[], Any], size: int) -> None:
        self._ray, self._hire = ray, hire
        self.idle: list[Any] = []
        self._awaited: dict[Any, tuple[Any, Unit | None]] = {}
        for _ in range(size):
            self.enlarge()

    @property
    def at_work(self) -> bool:
        """Whether any worker has a unit."""
        return any(unit is not None for _, unit in self._awaited.values())

    def enlarge(self) -> None:
        """Take on another worker; :meth:`next` tells when it is there."""
        worker = self._hire()
        self._awaited[worker.ready.remote()] = (worker, None)

    def assign(self, unit: Unit) -> None:
        """Give a unit to an idle worker."""
        worker = self.idle.pop()
        self._awaited[worker.run.remote(unit)] = (worker, unit)

    def next(self) -> tuple[Unit | None, _Done | _Died | None]:
        """Wait for the next answer, and say to which unit; None and None for a new worker, which is idle now."""
        reference = self._first_ready()
        worker, unit = self._awaited.pop(reference)
        exceptions = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise LauncherError(
                f"a worker cannot do its work ({unit}): {type(error.cause).__name__}: {error.cause}. "
                "What has ended is saved."
            ) from error
        except exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):  # nobody else would fare better
                raise LauncherError(f"a worker cannot start: {_last_line(error)}") from error
            self._end(worker)
            return unit, _Died(_last_line(error))
        self.idle.append(worker)
        return unit, answer

    def dismiss(self) -> None:
        """End every worker, at work or not; their environments end with them."""
        for worker in [*self.idle, *(worker for worker, _ in self._awaited.values())]:
            self._end(worker)

    def _first_ready(self) -> Any:
        patience: float | None = PATIENCE_S
        while True:
            ready, _ = self._ray.wait(list(self._awaited), num_returns=1, timeout=patience)
            if ready:
                return ready[0]
            if not self.at_work:
                _log.warning("no worker has started in %g s; the cluster may be busy: still waiting", patience)
            patience = None

    def _end(self, worker: Any) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker)


def _require_listener(address: str | None) -> None:
    """Raise ``OSError`` if nobody listens at ``host:port``, where Ray itself would go on trying for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _over(unit: Unit | None) -> str:
    return "while starting" if unit is None else f"over one unit of work ({unit})"
