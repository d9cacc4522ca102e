"""Continuous batching: requests join and leave between network evaluations, as a language model's server has it.

Orca (Yu et al. 2022) calls it iteration-level scheduling. Each request is sampled by the code that samples it alone, in
a thread of its own; where it evaluates the network it is suspended, and all suspended requests are evaluated in one
batch. So nothing but the network's rows is shared: random numbers, positions in the chain, windows and faults are each
request's own, and a chain at its third step goes beside one at its ninetieth.

Threads serve as coroutines here: only one of them runs at a time, and what torch keeps for a thread (inference mode,
gradient mode) stays with its request.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specpolicy.control.inference import InferenceResult
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.serving.batching import BatchedPolicy, Job, error_for_client
from specpolicy.speculative import SchedulerSampler, SequentialSampler, SpeculativeSampler
from specpolicy.speculative.compiled.runtime import RuntimeChain, with_array_steps
from specpolicy.speculative.denoiser import Cond, Denoiser, concatenate_rows

_MOST_THREADS = 1024


class Evaluation(NamedTuple):
    """What a suspended request wants to know: the network's output for n rows.

    Attributes:
        x: noisy points, shape ``(n, *event)``.
        timestep: of each, shape ``(n,)``.
        cond: conditions with leading dimension n, prepared or not.
    """

    x: Tensor
    timestep: Tensor
    cond: Cond


class Abandoned(BaseException):
    """Ends a suspended request. No ``Exception``: nothing on its way is to take it for a failure."""


class SuspendedRequest:
    """A request in a thread of its own that runs only while somebody waits for it in :meth:`go_on`.

    Args:
        key: what it is called.
        engine: answers it, with a :class:`SuspendingPolicy`.
        job: to answer.

    Attributes:
        key: likewise.
        wants: what it waits for; None before its first evaluation and after its end.
        result: its answer; None until it has ended.
    """

    _here = threading.local()

    def __init__(self, key: Hashable, engine: BatchedPolicy, job: Job) -> None:
        self.key, self._engine, self._job = key, engine, job
        self.wants: Evaluation | None = None
        self.result: InferenceResult | None = None
        self._output: Tensor | BaseException | None = None
        self._begun = False
        self._resumed, self._suspended = threading.Lock(), threading.Lock()  # as binary semaphores
        self._resumed.acquire()
        self._suspended.acquire()

    @classmethod
    def here(cls) -> SuspendedRequest:
        """The request whose thread this is.

        Raises:
            RuntimeError: none is.
        """
        request: SuspendedRequest | None = getattr(cls._here, "request", None)
        if request is None:
            raise RuntimeError("a network evaluation was to be shared outside of a continuous batch")
        return request

    def go_on(self, threads: ThreadPoolExecutor, output: Tensor | BaseException | None = None) -> None:
        """Run to the next evaluation, or to the end.

        Args:
            threads: one of them runs it.
            output: of the evaluation that it waits for, or why there is none; None to begin.
        """
        self.wants, self._output = None, output
        if self._begun:
            self._resumed.release()
        else:
            self._begun = True
            threads.submit(self._run)
        self._suspended.acquire()

    def evaluate(self, wants: Evaluation) -> Tensor:
        """Suspend the request until somebody has made an evaluation; in its own thread.

        Args:
            wants: the evaluation.

        Returns:
            The network's output.
        """
        self.wants = wants
        self._suspended.release()
        self._resumed.acquire()
        output, self._output = self._output, None
        if isinstance(output, BaseException):
            raise output
        assert output is not None
        return output

    def _run(self) -> None:
        self._here.request = self
        try:
            self.result = self._engine.run([self._job])[0]
        except BaseException as error:  # whatever it is, nobody waits for this thread for ever
            self.result = InferenceResult(error="abandoned")
            if isinstance(error, Exception):
                self.result = InferenceResult(error=error_for_client(error))
        finally:
            self._here.request = None
            self._suspended.release()


class SuspendingPolicy(DiffusionPolicy):
    """A policy whose network evaluations suspend the request in whose thread they are wanted.

    Args:
        policy: shares its weights, encoders and tables with this one.
    """

    def __init__(self, policy: DiffusionPolicy) -> None:
        self.__dict__.update(policy.__dict__)

    def forward(self, x: Tensor, timestep: Tensor, cond: Any) -> Tensor:
        """Wait for the evaluation; see :meth:`DiffusionPolicy.forward`."""
        return SuspendedRequest.here().evaluate(Evaluation(x, timestep, cond))


class ContinuousBatch:
    """Requests under way, advanced together by one network evaluation at a time. Use it from one thread.

    Args:
        engine: policy and sampler.

    Raises:
        ValueError: the sampler cannot be suspended; see :func:`why_not_continuous`.
    """

    def __init__(self, engine: BatchedPolicy) -> None:
        if reason := why_not_continuous(engine):
            raise ValueError(reason)
        sampler: Any = engine.sampler
        self._network: Denoiser = engine.policy
        if isinstance(sampler, RuntimeChain):
            # Its network is called once for all requests; each of them is sampled by the sampler inside.
            self._network, sampler = sampler.network(engine.policy), sampler.sampler
        self._alone = BatchedPolicy(SuspendingPolicy(engine.policy), with_array_steps(sampler))
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="specpolicy-request")
        self._requests: list[SuspendedRequest] = []

    def __len__(self) -> int:
        """How many requests are under way."""
        return len(self._requests)

    def join(self, key: Hashable, job: Job) -> None:
        """Let a request take part from the next evaluation on.

        Args:
            key: what :meth:`advance` calls it.
            job: of a session that has no other under way.

        Raises:
            ValueError: more are under way than there can be threads.
        """
        if len(self._requests) >= _MOST_THREADS:
            raise ValueError(f"{len(self._requests)} requests are under way; there can be {_MOST_THREADS}")
        self._requests.append(SuspendedRequest(key, self._alone, job))

    def advance(self) -> list[tuple[Any, InferenceResult]]:
        """Evaluate the network once for all requests, and let each go on to where it needs it again.

        Returns:
            Key and result of those that have finished; a request that failed has an ``error``.
        """
        for request in self._requests:
            if request.wants is None:
                request.go_on(self._threads)
        waiting = [(request, request.wants) for request in self._requests if request.wants is not None]
        outputs = self._evaluate([wants for _, wants in waiting]) if waiting else []
        for (request, _), output in zip(waiting, outputs, strict=True):
            request.go_on(self._threads, output)
        done = [(request.key, request.result) for request in self._requests if request.result is not None]
        self._requests = [request for request in self._requests if request.result is None]
        return done

    def abandon(self) -> list[Any]:
        """Give all requests up; their random streams stay where they are.

        Returns:
            Their keys.
        """
        requests, self._requests = self._requests, []
        for request in requests:
            if request.wants is not None:
                request.go_on(self._threads, Abandoned())
        return [request.key for request in requests]

    @torch.inference_mode()
    def _evaluate(self, wanted: list[Evaluation]) -> list[Tensor | Exception]:
        """Make one evaluation for all; if it fails, each is tried alone, so that only the culprit fails."""
        try:
            if len(wanted) == 1:
                return [self._network(*wanted[0])]
            x, timestep = torch.cat([each.x for each in wanted]), torch.cat([each.timestep for each in wanted])
            output = self._network(x, timestep, concatenate_rows([each.cond for each in wanted]))
            return list(torch.split(output, [len(each.x) for each in wanted]))
        except Exception as error:
            return [error] if len(wanted) == 1 else [self._evaluate([each])[0] for each in wanted]


def why_not_continuous(engine: BatchedPolicy) -> str | None:
    """Say why requests to an engine cannot be batched continuously.

    Args:
        engine: policy and sampler.

    Returns:
        One line; None if they can. Compiled samplers run whole chains in fixed shapes, others keep something in the
        network while they sample.
    """
    sampler = engine.sampler
    inner = sampler.sampler if isinstance(sampler, RuntimeChain) else sampler
    if type(inner) in (SpeculativeSampler, SequentialSampler, SchedulerSampler):
        return None
    return (
        f"{type(inner).__name__} cannot be suspended between network evaluations: a request waits for the batch that "
        "is under way"
    )
