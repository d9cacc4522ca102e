"""Units of work in the workers of a Ray cluster, on one machine or many.

Each worker opens its own policy and environments and keeps them from unit to unit. A unit's results come back together;
if a worker dies, Ray starts it again, and its unit begins anew.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
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
            make_worker = ray.remote(
                num_cpus=self.cpus_per_worker,
                num_gpus=self.gpus_per_worker,
                max_restarts=-1,
                max_task_retries=self.attempts - 1,
            )(_Worker).remote
            shared = ray.put(dict(comparisons))
            workers = [make_worker(shared) for _ in range(self._room(ray, len(units)))]
            try:
                yield from self._run(ray, _started(ray, workers), units)
            finally:
                for worker in workers:
                    with suppress(ray.exceptions.RayError):
                        ray.kill(worker)

    def _run(self, ray: Any, workers: Sequence[Any], units: Sequence[Unit]) -> Iterator[Batch]:
        pool, waiting = require("ray.util", "ray").ActorPool(workers), {}

        def submit(worker: Any, unit: Unit) -> Any:
            reference = worker.run.remote(unit)
            waiting[reference] = unit
            return reference

        for unit in units:
            pool.submit(submit, unit)
        while pool.has_next():
            try:
                done: _Done = pool.get_next_unordered()
            except ray.exceptions.RayTaskError as error:
                failed = _failed(ray, waiting)
                raise LauncherError(
                    f"a worker cannot do its work ({failed}): {type(error.cause).__name__}: {error.cause}. "
                    "What has ended is saved."
                ) from error
            except ray.exceptions.RayError as error:
                raise LauncherError(
                    f"workers died {self.attempts} times over one unit of work ({_failed(ray, waiting)}): "
                    f"{_last_line(error)}. What has ended is saved."
                ) from error
            for reference in [each for each, unit in waiting.items() if unit == done.unit]:
                del waiting[reference]
            if done.restarted:
                _log.warning("a worker died over one unit of work (%s), which another one did again", done.unit)
            yield done.batch
            if done.aborted is not None:
                raise EvaluationAborted(done.aborted)

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

    unit: Unit
    batch: Batch
    aborted: str | None
    restarted: bool


class _Worker:
    """Lives in a Ray worker process; keeps the last task's policy and environments open."""

    def __init__(self, comparisons: Mapping[str, Comparison]) -> None:
        context = require("ray", "ray").get_runtime_context()
        self._restarted = bool(context.was_current_actor_reconstructed)
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
        aborted, restarted = None, self._restarted
        self._restarted = False
        try:
            batches.extend(self._runner.run([unit]))
        except EvaluationAborted as error:
            aborted = str(error)
        observations = batches[-1].observations if batches else ()
        records = tuple(record for batch in batches for record in batch.records)
        return _Done(unit, Batch(unit.task, records, observations), aborted, restarted)


def _started(ray: Any, workers: Sequence[Any]) -> list[Any]:
    """Those that have started in a minute, or the first one, however long that takes."""
    starting = {worker.ready.remote(): worker for worker in workers}
    ready, _ = ray.wait(list(starting), num_returns=len(starting), timeout=PATIENCE_S)
    if not ready:
        _log.warning("no worker has started in %g s; the cluster may be busy: still waiting", PATIENCE_S)
        ready, _ = ray.wait(list(starting), num_returns=1)
    try:
        ray.get(ready)
    except ray.exceptions.RayError as error:
        raise LauncherError(f"a worker cannot start: {_last_line(error)}") from error
    return [starting[reference] for reference in ready]


def _failed(ray: Any, waiting: Mapping[Any, Unit]) -> Unit | None:
    """The unit whose result is an exception."""
    for reference, unit in waiting.items():
        if ray.wait([reference], timeout=0)[0]:
            try:
                ray.get(reference)
            except ray.exceptions.RayError:
                return unit
    return None


def _require_listener(address: str | None) -> None:
    """Raise ``OSError`` if nobody listens at ``host:port``, where Ray itself would go on trying for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
