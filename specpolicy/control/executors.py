"""Executors: how a robot lives with a policy that takes its time.

An executor answers four questions, which have nothing to do with one another:

* *when* to infer: ``play`` actions of a chunk are played, the next chunk is asked for ``lead`` ticks before they end;
* *from which observation*: the present one; or, ahead of it, from a predicted one (:class:`Ahead`);
* *what plays meanwhile*: nothing, for the world waits; a hold; or the rest of the present chunk (:class:`Meanwhile`);
* *how chunks are merged*: aligned in time or begun on arrival, and blended where they overlap.

The answers are :class:`Rules`, all that the loop knows of an executor; the classes name useful sets of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Protocol

import numpy as np

from specpolicy.control.action_buffer import ActionBuffer, Aggregator, LatestOnly
from specpolicy.policies.observations import HistoryWindow


class Predictor(Protocol):
    """Guesses the observation window ``ticks`` from now."""

    def __call__(self, window: HistoryWindow, ticks: int) -> HistoryWindow:
        """A window of the same shapes and dtypes."""
        ...


@dataclass(frozen=True)
class LastObservation:
    """Nothing will have changed."""

    def __call__(self, window: HistoryWindow, ticks: int) -> HistoryWindow:
        """The window as it is."""
        return window


@dataclass(frozen=True)
class LinearObservation:
    """Everything goes on as over the last two observations.

    Attributes:
        damping: share of the change that is believed in, 0 to 1.
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1:
            raise ValueError(f"damping={self.damping}; expected 0 (nothing changes) to 1 (all goes on)")

    def __call__(self, window: HistoryWindow, ticks: int) -> HistoryWindow:
        """Each step of the window moved on by ``ticks`` times its last change; with one step, the window as it is."""
        return {name: self._extrapolate(steps, ticks) for name, steps in window.items()}

    def _extrapolate(self, steps: np.ndarray, ticks: int) -> np.ndarray:
        if len(steps) < 2 or not np.issubdtype(steps.dtype, np.floating):
            return steps
        moved: np.ndarray = steps + self.damping * ticks * (steps[-1] - steps[-2])
        return moved.astype(steps.dtype)


class IdleBehavior(StrEnum):
    """What happens between the end of what was to be played and the next chunk."""

    WORLD_WAITS = "world waits"
    HOLD = "hold"
    REST = "rest"


@dataclass(frozen=True)
class PredraftConfig:
    """When and under what to pre-draft.

    Attributes:
        ticks: how long before the next observation is due the draft is begun, at least 1. Long enough for the draft
            to be finished by then, or the chunk has to wait for it; no longer, for older guesses are worse. None: as
            long as the longest of the episode's last eight drafts and whole inferences took.
        predictor: guesses the observation.
    """

    ticks: int | None = None
    predictor: Predictor = field(default_factory=LastObservation)

    def __post_init__(self) -> None:
        if self.ticks is not None and self.ticks < 1:
            raise ValueError(f"pre-drafting {self.ticks} ticks ahead; it takes at least 1")


@dataclass(frozen=True)
class ExecutorConfig:
    """An executor's four answers.

    Attributes:
        play: actions of a chunk that are played, at least 1.
        lead: ticks before their end at which the next chunk is asked for, 0 to ``play``.
        meanwhile: what plays while there is nothing planned.
        aligned: actions keep the ticks that the policy meant them for, and those that have passed are dropped; else a
            chunk begins with its first action whenever it arrives.
        blend: what is done where chunks overlap.
        ahead: pre-drafting; None without.

    Raises:
        ValueError: out of range, or chunks that are blended but not aligned.
    """

    play: int
    lead: int = 0
    meanwhile: IdleBehavior = IdleBehavior.REST
    aligned: bool = True
    blend: Aggregator = field(default_factory=LatestOnly)
    ahead: PredraftConfig | None = None

    def __post_init__(self) -> None:
        if self.play < 1:
            raise ValueError(f"play={self.play}; at least 1 action of a chunk must be played")
        if not 0 <= self.lead <= self.play:
            raise ValueError(f"lead={self.lead}; expected 0 to play={self.play} ticks")
        if not self.aligned and not isinstance(self.blend, LatestOnly):
            raise ValueError(
                "chunks that begin on arrival cannot be blended: their actions for one tick were meant for different "
                "times; choose meanwhile='rest', or no ensembling"
            )

    @property
    def world_waits(self) -> bool:
        """Whether the world stands still while the policy computes."""
        return self.meanwhile is IdleBehavior.WORLD_WAITS

    def plan(self) -> ActionBuffer:
        """An empty plan that follows these rules."""
        return ActionBuffer(self.play, self.meanwhile is IdleBehavior.REST, self.aligned, self.blend)


class Executor(Protocol):
    """Anything that has rules."""

    @property
    def rules(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        ...


@dataclass(frozen=True)
class Lockstep:
    """The world waits while the policy computes, as in ordinary simulated evaluations. No robot can have this.

    Attributes:
        play: actions of each chunk that are played.
        blend: see :class:`ExecutorConfig`.
    """

    play: int = 8
    blend: Aggregator = field(default_factory=LatestOnly)

    @property
    def rules(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        return ExecutorConfig(self.play, meanwhile=IdleBehavior.WORLD_WAITS, blend=self.blend)


@dataclass(frozen=True)
class Blocking:
    """Plays, then computes, then plays.

    Attributes:
        play: actions of each chunk that are played.
        meanwhile: ``"hold"``: the robot stands still while it computes, then plays the chunk from its first action,
            for which it still is in the right place. ``"rest"``: it plays on, as :class:`RecedingHorizon`.
        blend: see :class:`ExecutorConfig`.
    """

    play: int = 8
    meanwhile: Literal["hold", "rest"] = "hold"
    blend: Aggregator = field(default_factory=LatestOnly)

    def __post_init__(self) -> None:
        if self.meanwhile not in ("hold", "rest"):
            raise ValueError(f"meanwhile={self.meanwhile!r}; a blocking executor knows 'hold' and 'rest'")

    @property
    def rules(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        meanwhile = IdleBehavior(self.meanwhile)
        return ExecutorConfig(self.play, meanwhile=meanwhile, aligned=meanwhile is IdleBehavior.REST, blend=self.blend)


@dataclass(frozen=True)
class RecedingHorizon:
    """Plays ``play`` actions, asks for the next chunk, and plays the rest of the present one until it comes.

    The real-time loop of Chi et al. (*Diffusion Policy*, 2023, section IV-D): actions carry the times that they are
    for, and those whose time has passed are dropped.

    Attributes:
        play: actions of each chunk that are played before the next one is asked for, e.g. 8 of 16.
        blend: see :class:`ExecutorConfig`.
    """

    play: int = 8
    blend: Aggregator = field(default_factory=LatestOnly)

    @property
    def rules(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        return ExecutorConfig(self.play, blend=self.blend)


@dataclass(frozen=True)
class Asynchronous:
    """Computes the next chunk while the present one plays; it takes over as soon as it comes, aligned in time.

    Attributes:
        play: actions of each chunk that are played if the next one is late.
        lead: ticks before their end at which the next chunk is asked for; ``lead=play`` computes without pause. None:
            half of ``play``.
        blend: see :class:`ExecutorConfig`.
    """

    play: int = 8
    lead: int | None = None
    blend: Aggregator = field(default_factory=LatestOnly)

    @property
    def rules(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        return ExecutorConfig(self.play, self.play // 2 if self.lead is None else self.lead, blend=self.blend)


@dataclass(frozen=True)
class PreDrafting:
    """Any executor that spends its idle time on a draft of the next chunk, under a predicted observation.

    When the observation comes, the draft is verified under it and mended. The chunk has the policy's law at the true
    observation, whatever was predicted. If the draft takes longer than expected, the observation is kept for it.

    Attributes:
        executor: whose rules hold otherwise.
        ahead: when the draft is begun, and under what.
    """

    executor: Executor = field(default_factory=RecedingHorizon)
    ahead: PredraftConfig = field(default_factory=PredraftConfig)

    @property
    def rules(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        return replace(self.executor.rules, ahead=self.ahead)
