"""Action chunks on the clock: which action is for which tick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from specpolicy.control.action_space import Action
from specpolicy.control.trace import InferenceRecord


@dataclass(frozen=True)
class Chunk:
    """A chunk on the clock.

    Attributes:
        inference: that it came from.
        actions: shape ``(n, action_dim)``, environment units.
        start: tick that the first action is for.
        handover: tick from which on it is played.
        play_end: first tick that it is not planned for any more.
        end: first tick at which the executor lets it play no longer; later than ``play_end`` if its rest may play.
    """

    inference: InferenceRecord
    actions: Action
    start: int
    handover: int
    play_end: int
    end: int

    def covers(self, tick: int) -> bool:
        """Say whether it has an action for ``tick``, planned or not."""
        return self.start <= tick < self.start + len(self.actions)

    def at(self, tick: int) -> Action:
        """Return the action for a tick that it covers, shape ``(action_dim,)``."""
        action: Action = self.actions[tick - self.start]
        return action


class Aggregator(Protocol):
    """Makes one action out of those that several chunks have for the same tick."""

    def __call__(self, tick: int, chunks: Sequence[Chunk]) -> Action:
        """The action for ``tick``; every chunk covers it, the oldest comes first."""
        ...


@dataclass(frozen=True)
class LatestOnly:
    """The newest chunk's action; older chunks are forgotten."""

    def __call__(self, tick: int, chunks: Sequence[Chunk]) -> Action:
        """See :class:`Aggregator`."""
        return chunks[-1].at(tick)


@dataclass(frozen=True)
class TemporalEnsemble:
    """Temporal ensembling of ACT (Zhao et al. 2023, section IV-B): Σ w_i a_i / Σ w_i, w_i = exp(−decay·i).

    Index 0 is the oldest chunk, so a small ``decay`` takes new observations in quickly, a large one slowly.

    Attributes:
        decay: m in the paper, at least 0; 0.01 there.
    """

    decay: float = 0.01

    def __post_init__(self) -> None:
        if self.decay < 0:
            raise ValueError(f"decay={self.decay} of temporal ensembling; it must not be negative")

    def __call__(self, tick: int, chunks: Sequence[Chunk]) -> Action:
        """See :class:`Aggregator`."""
        weights = np.exp(-self.decay * np.arange(len(chunks)))
        mean: Action = weights @ np.stack([chunk.at(tick) for chunk in chunks]) / weights.sum()
        return mean


class BufferedAction(NamedTuple):
    """An action for a tick, and the newest chunk that it comes from."""

    action: Action
    chunk: Chunk


class ActionBuffer:
    """The chunks that may still be played.

    Args:
        n_action_steps: actions of a chunk that are planned to be played.
        rest: whether the rest of a chunk may be played while the next one is awaited.
        aligned: whether a chunk's first action stays with the tick of its observation (what has passed is dropped), or
            is moved to the tick at which the chunk arrives.
        aggregate: what to do where chunks overlap.
    """

    def __init__(self, n_action_steps: int, rest: bool, aligned: bool, aggregate: Aggregator) -> None:
        self._n_action_steps, self._rest, self._aligned, self._aggregate = n_action_steps, rest, aligned, aggregate
        self._chunks: list[Chunk] = []

    def add(self, inference: InferenceRecord, actions: Action, tick: int) -> Chunk | None:
        """Plan a chunk.

        Args:
            inference: that it came from.
            actions: shape ``(n, action_dim)``; copied, so that the policy may reuse its array.
            tick: at which it is there.

        Returns:
            The chunk; None if all of its actions are for ticks that have passed.
        """
        start = inference.tick if self._aligned else tick
        length = start + len(actions)
        if length <= tick:
            return None
        play_end = min(tick + self._n_action_steps, length)
        chunk = Chunk(inference, np.array(actions), start, tick, play_end, length if self._rest else play_end)
        self._chunks = [each for each in self._chunks if each.start + len(each.actions) > tick] + [chunk]
        return chunk

    def action(self, tick: int, overtime: bool = False) -> BufferedAction | None:
        """Return the action for ``tick``; None if none is left.

        Args:
            tick: number of the tick.
            overtime: also one that was not planned to be played.
        """
        if not self._chunks:
            return None
        newest = self._chunks[-1]
        if not newest.covers(tick) or (tick >= newest.end and not overtime):
            return None
        chunks = [chunk for chunk in self._chunks if chunk.covers(tick)]
        return BufferedAction(self._aggregate(tick, chunks), newest)

    def older(self, tick: int) -> list[BufferedAction]:
        """Return the actions that earlier chunks have for ``tick``, the newest chunk first."""
        return [BufferedAction(chunk.at(tick), chunk) for chunk in reversed(self._chunks[:-1]) if chunk.covers(tick)]

    def left(self, tick: int) -> int:
        """Count the actions from ``tick`` on that may still be played."""
        return max(self._chunks[-1].end - tick, 0) if self._chunks else 0

    @property
    def empty(self) -> bool:
        """Whether there has been no chunk yet."""
        return not self._chunks
