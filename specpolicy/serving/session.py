"""What the server keeps of one connection: its recent observations, its random stream, its request under way."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from specpolicy.control.inference import EpisodeState, InferenceKind, InferenceRequest
from specpolicy.policies.observations import HistoryWindow, ObservationError, ObservationSpec, check_numbers
from specpolicy.policies.prefix import PrefixError
from specpolicy.serving.batching import Batcher, Done, Engine
from specpolicy.serving.protocol import (
    BadRequest,
    DecodeLimits,
    Request,
    RequestRefused,
    Unreadable,
    brief,
    failure,
    parse_request,
    success,
)

Step: TypeAlias = Mapping[str, NDArray[Any]]


class StepCollector:
    """The last ``n_obs_steps`` observations of a session.

    A robot sends either the present observation, vectors of shape ``(dim,)`` and images of bytes, which is appended
    (the first is repeated, as at the start of an episode), or all steps that the policy observes, of shape
    ``(n_obs_steps, dim)`` or ``(n_obs_steps, ...)``, the present one last, which replace the earlier ones.

    Args:
        spec: names, shapes and number of steps.
    """

    def __init__(self, spec: ObservationSpec) -> None:
        self.spec = spec
        self._steps: deque[Step] = deque(maxlen=spec.horizon)

    def clear(self) -> None:
        """Forget everything."""
        self._steps.clear()

    def add(self, observation: Mapping[Any, Any]) -> tuple[str, ...]:
        """Remember an observation, if all that the policy needs of it is right.

        Args:
            observation: named values. What the policy does not need may be anything.

        Returns:
            The names that the policy does not use, sorted.

        Raises:
            RequestRefused: a part is missing, has another shape or type, or is not finite as float32; nothing is
                remembered.
        """
        spec = self.spec
        if missing := [name for name in spec.keys if name not in observation]:
            there = brief(sorted(map(str, observation)), 300)
            raise RequestRefused(f"observation lacks {missing}; expected {self.expected()}; there are {there}")
        parts = {name: self._checked(name, observation[name]) for name in spec.keys}
        single = {part.shape == spec.shapes[name] for name, part in parts.items()}
        if len(single) > 1:
            shapes = {name: part.shape for name, part in parts.items()}
            raise RequestRefused(f"some parts are one step and some a history: {shapes}; expected {self.expected()}")
        if single == {True}:
            present = [parts]
        else:
            present = [{name: part[step] for name, part in parts.items()} for step in range(spec.horizon)]
        missing_steps = spec.horizon - len(self._steps) - len(present)
        self._steps.extend(present[:1] * (missing_steps if not self._steps else 0) + present)
        return tuple(sorted(str(name) for name in observation if name not in spec.keys))

    def window(self) -> HistoryWindow:
        """Stack the remembered steps.

        Returns:
            Each part, shape ``(n_obs_steps, ...)``.
        """
        return {name: np.stack([step[name] for step in self._steps]) for name in self.spec.keys}

    def expected(self) -> str:
        """Describe the shapes that :meth:`add` takes."""
        spec = self.spec
        parts = ", ".join(
            f"{name} {shape}{' of uint8' if name in spec.images else ''}" for name, shape in spec.shapes.items()
        )
        return (
            f"{parts} for the present step, or arrays with one axis more of {spec.horizon} steps, the present one last"
        )

    def _checked(self, name: str, value: Any) -> NDArray[Any]:
        shape, horizon = self.spec.shapes[name], self.spec.horizon
        part = _as_array(value, f"observation[{name!r}]")
        if part.shape not in (shape, (horizon, *shape)):
            raise RequestRefused(
                f"observation[{name!r}] has shape {part.shape}; expected {shape} for the present step, or "
                f"{(horizon, *shape)} for {horizon} steps, the present one last"
            )
        if name in self.spec.images:
            if part.dtype != np.uint8:
                raise RequestRefused(
                    f"observation[{name!r}] has type {part.dtype}; expected uint8, an image's bytes from 0 to 255"
                )
            return part.copy()  # what came is a view of the whole message
        try:
            return check_numbers(name, part)
        except ObservationError as error:
            raise RequestRefused(str(error)) from error


def _as_array(value: Any, what: str) -> NDArray[Any]:
    if isinstance(value, Unreadable):
        raise RequestRefused(f"{what}: {value.reason}; expected a numeric array or a list of numbers")
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list) and all(_is_number(each) for row in value for each in _listed(row)):
        try:
            return np.asarray(value, dtype=np.float64)
        except (ValueError, OverflowError) as error:  # rows of different lengths, integers without end
            raise RequestRefused(f"{what} is not an array: {error}") from error
    raise RequestRefused(f"{what} is {brief(value)}; expected a numeric array or a list of numbers")


def _listed(row: Any) -> list[Any]:
    return row if isinstance(row, list) else [row]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


_NAMED, _NAME_LENGTH = 8, 80


class ClientDisconnected(Exception):
    """The client has left; nobody waits for the answer."""


class PolicyFailed(Exception):
    """A correct request could not be carried out; the text is for the client."""


class Session:
    """One connection's observation history and random stream, and its request under way.

    Args:
        engine: samples.
        batcher: runs it.

    Attributes:
        name: for logs and clients.
        seed: with which the random stream began.
        busy: whether a request has begun and has not been answered.
    """

    def __init__(self, engine: Engine, batcher: Batcher) -> None:
        self.name, self.seed = secrets.token_hex(4), secrets.randbits(63)
        self.busy = True
        self._batcher, self._limits = batcher, DecodeLimits.of(engine.observations)
        self._history, self._state = StepCollector(engine.observations), EpisodeState.start(self.seed)
        self._pending: asyncio.Future[Done] | None = None
        self._gone = False
        self._check_prefix = engine.check_prefix

    async def answer(self, frame: bytes | str) -> bytes | str:
        """Carry out a request; its mistakes, and the policy's, become the reply.

        Args:
            frame: as it came.

        Returns:
            The reply's frame.

        Raises:
            ClientDisconnected: :meth:`leave` was called meanwhile.
        """
        arrived = time.perf_counter()
        try:
            request = parse_request(frame, self._limits)
        except BadRequest as error:
            return failure("refused", str(error), error.id, error.enveloped)
        try:
            return await self._carried_out(request, arrived)
        except RequestRefused as error:
            return failure("refused", str(error), request.id, request.enveloped)
        except PolicyFailed as error:
            return failure("failed", str(error), request.id, request.enveloped)

    def leave(self) -> None:
        """Stop waiting, since the client has gone, and take its job out of the queue."""
        self._gone = True
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(ClientDisconnected())

    async def _carried_out(self, request: Request, arrived: float) -> bytes:
        if request.kind == "reset":
            self._history.clear()
            self._state.forget()
            if request.seed is not None:
                self.seed, self._state = request.seed, EpisodeState.start(request.seed, request.repeat)
            return success(request, seed=self.seed)
        ignored = [name[:_NAME_LENGTH] for name in self._history.add(request.observation)[:_NAMED]]
        if request.kind == "observe":
            return success(request, ignored=ignored)
        done = await self._sampled(None if request.prefix is None else self._prefix(request.prefix))
        result = done.result
        if result.error is not None:
            raise PolicyFailed(result.error)
        timing = {
            "infer_ms": done.infer_ms,
            "queue_ms": done.queue_ms,
            "server_ms": 1e3 * (time.perf_counter() - arrived),
        }
        return success(
            request,
            actions=result.actions,
            passes=result.passes,
            acceptance=result.acceptance,
            batch=done.batch,
            ignored=ignored,
            server_timing=timing,
        )

    def _prefix(self, value: Any) -> NDArray[np.float64]:
        """Check actions under way; the others of a batch are asked only about prefixes that fit."""
        actions = _as_array(value, "prefix")
        try:
            self._check_prefix(actions)
        except PrefixError as error:
            raise RequestRefused(f"prefix: {error}") from error
        return actions.astype(np.float64)

    async def _sampled(self, prefix: NDArray[np.float64] | None = None) -> Done:
        if self._gone:
            raise ClientDisconnected
        request = InferenceRequest(InferenceKind.WHOLE, self._history.window(), prefix=prefix)
        self._pending = self._batcher.submit((self._state, request))
        try:
            return await self._pending
        finally:
            self._pending = None
