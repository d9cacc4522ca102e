"""What the server remembers of one connection."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from specpolicy import DenoiserError
from specpolicy.policies import ObservationError

from .batching import Batcher, Done
from .engine import Engine, Job
from .errors import RequestRefused
from .history import ObservationHistory
from .messages import BadRequest, Request, failure, parse_request, success

_log = logging.getLogger(__name__)
_NAMED, _NAME_LENGTH = 8, 80


class Gone(Exception):
    """The client has left; nobody waits for the answer."""


class PolicyFailed(Exception):
    """A request in order could not be carried out; the text is for the client."""

    @classmethod
    def because(cls, error: Exception) -> PolicyFailed:
        """What a client may know: our own words, and of anything else only its name."""
        if isinstance(error, DenoiserError | ObservationError):
            return cls(str(error))
        _log.error("the policy failed", exc_info=error)
        return cls(f"the policy failed with {type(error).__name__}; the server's log has the details")


class Session:
    """One connection's observation history and random stream, and the request that is under way.

    Attributes:
        name: for people and logs.
        seed: with which the random stream began.
        busy: whether there is a request that has begun and has not been answered.
    """

    def __init__(self, engine: Engine, batcher: Batcher) -> None:
        self.name, self.seed = secrets.token_hex(4), secrets.randbits(63)
        self.busy = True
        self._engine, self._batcher = engine, batcher
        self._history, self._stream = ObservationHistory(engine.observations), engine.stream(self.seed)
        self._pending: asyncio.Future[Done] | None = None
        self._gone = False

    async def answer(self, frame: bytes | str) -> bytes | str:
        """Carry out a request; its mistakes, and the policy's, become the reply.

        Raises:
            Gone: :meth:`leave` was called meanwhile.
        """
        arrived = time.perf_counter()
        try:
            request = parse_request(frame)
        except BadRequest as error:
            return failure("refused", str(error), error.id, error.enveloped)
        try:
            return await self._carried_out(request, arrived)
        except RequestRefused as error:
            return failure("refused", str(error), request.id, request.enveloped)
        except PolicyFailed as error:
            return failure("failed", str(error), request.id, request.enveloped)

    def leave(self) -> None:
        """The client has gone: stop waiting, and take its job out of the queue."""
        self._gone = True
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(Gone())

    async def _carried_out(self, request: Request, arrived: float) -> bytes:
        if request.kind == "reset":
            self._history.clear()
            if request.seed is not None:
                self.seed, self._stream = request.seed, self._engine.stream(request.seed)
            return success(request, seed=self.seed)
        ignored = [name[:_NAME_LENGTH] for name in self._history.add(request.observation)[:_NAMED]]
        if request.kind == "observe":
            return success(request, ignored=ignored)
        done = await self._sampled()
        answer = done.answer
        if isinstance(answer, Exception):
            raise PolicyFailed.because(answer) from answer
        timing = {
            "infer_ms": done.infer_ms,
            "queue_ms": done.queue_ms,
            "server_ms": 1e3 * (time.perf_counter() - arrived),
        }
        return success(
            request,
            actions=answer.actions,
            passes=answer.passes,
            acceptance=answer.acceptance,
            batch=done.batch,
            ignored=ignored,
            server_timing=timing,
        )

    async def _sampled(self) -> Done:
        if self._gone:
            raise Gone
        self._pending = self._batcher.submit(Job(self._history.stacked(), self._stream))
        try:
            return await self._pending
        finally:
            self._pending = None
