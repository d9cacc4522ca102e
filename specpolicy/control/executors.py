"""Executors: what a robot does while its policy computes.

An executor answers four independent questions:

* *when* to infer: ``n_action_steps`` actions of a chunk are played; the next chunk is requested ``prefetch_steps``
  ticks before they end;
* *from which observation*: the present one; the one predicted for the tick at which the chunk takes over
  (``predictor``); or ahead of it from a predicted one, then verified under the true one (:class:`PredraftConfig`);
* *what is played in between*: nothing, for the world waits; a hold; or the rest of the chunk (:class:`IdleBehavior`);
* *how chunks are merged*: aligned in time or begun on arrival, and aggregated where they overlap.

The answers are an :class:`ExecutorConfig`, all that the loop knows of an executor; the classes name useful ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from specpolicy.control.action_buffer import ActionBuffer, Aggregator, LatestOnly
from specpolicy.policies.observations import HistoryWindow


class Predictor(Protocol):
    """Guesses the observation window some ticks from now."""

    def __call__(self, window: HistoryWindow, ticks: int, actions: NDArray[np.float64]) -> HistoryWindow:
        """Guess.

        Args:
            window: the present one, ``{name: (n_obs_steps, …)}``.
            ticks: how far ahead, at least 1.
            actions: planned for the ticks until then, the present one's first, shape ``(n, action_dim)``, environment
                units; ``n`` is ``ticks``, or less if no more is planned.

        Returns:
            A window of the same names, shapes and dtypes.
        """
        ...


@dataclass(frozen=True)
class LastObservation:
    """Nothing will have changed."""

    def __call__(self, window: HistoryWindow, ticks: int, actions: NDArray[np.float64]) -> HistoryWindow:
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

    def __call__(self, window: HistoryWindow, ticks: int, actions: NDArray[np.float64]) -> HistoryWindow:
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
        ticks: how long before the next observation is due the draft is begun, at least 1. It should be finished by
            then, or the chunk has to wait for it; predictions further ahead are less accurate. None: as long as the
            longest of the episode's last eight drafts and whole inferences took.
        predictor: guesses the observation; None: :class:`LinearObservation`.
    """

    ticks: int | None = None
    predictor: Predictor | None = None

    def __post_init__(self) -> None:
        if self.ticks is not None and (isinstance(self.ticks, bool) or not self.ticks >= 1 or self.ticks % 1):
            raise ValueError(f"pre-drafting ticks={self.ticks!r} ahead; expected a whole number, at least 1, or null")

    def predict(self, window: HistoryWindow, ticks: int, actions: NDArray[np.float64]) -> HistoryWindow:
        """See :class:`Predictor`."""
        return (LinearObservation() if self.predictor is None else self.predictor)(window, ticks, actions)


@dataclass(frozen=True)
class ExecutorConfig:
    """How an executor uses chunks.

    Attributes:
        n_action_steps: actions of a chunk that are played, at least 1.
        prefetch_steps: ticks before their end at which the next chunk is requested, 0 to ``n_action_steps``.
        idle: what plays while there is nothing planned.
        aligned: actions keep the ticks that the policy meant them for, and those that have passed are dropped; else a
            chunk begins with its first action whenever it arrives.
        aggregate: what is done where chunks overlap.
        predraft: pre-drafting; None without.
        predictor: the policy is asked about the observation that this guesses for the tick at which its chunk is
            expected to take over, given the actions that play until then; None: about the present one. The next chunk
            is then requested at least as early as it is expected to take, as far as ``n_action_steps`` allow.

    Raises:
        ValueError: out of range, chunks that are aggregated but not aligned, or a predictor where none has a place:
            where nothing plays while the policy computes, or beside pre-drafting.
    """

    n_action_steps: int
    prefetch_steps: int = 0
    idle: IdleBehavior = IdleBehavior.REST
    aligned: bool = True
    aggregate: Aggregator = field(default_factory=LatestOnly)
    predraft: PredraftConfig | None = None
    predictor: Predictor | None = None

    def __post_init__(self) -> None:
        for name in ("n_action_steps", "prefetch_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(f"executor: {name}={value!r}; expected a whole number of ticks")
        if self.n_action_steps < 1:
            raise ValueError(f"n_action_steps={self.n_action_steps}; at least 1 action of a chunk must be played")
        if not 0 <= self.prefetch_steps <= self.n_action_steps:
            raise ValueError(
                f"prefetch_steps={self.prefetch_steps}; expected 0 to n_action_steps={self.n_action_steps} ticks"
            )
        if not self.aligned and not isinstance(self.aggregate, LatestOnly):
            raise ValueError(
                "chunks that begin on arrival cannot be aggregated: their actions for one tick were meant for "
                "different times; choose idle='rest', or no ensembling"
            )
        if self.predictor is not None and (self.idle is not IdleBehavior.REST or not self.aligned):
            raise ValueError(
                "a predictor guesses what will be observed after the actions that play while the policy computes; this "
                "executor plays none: take asynchronous, or no predictor"
            )
        if self.predictor is not None and self.predraft is not None:
            raise ValueError(
                "pre-drafts are verified under the observation itself, a predictor's chunk is sampled under what it "
                "guesses: choose one of them"
            )

    @property
    def world_waits(self) -> bool:
        """Whether the world stands still while the policy computes."""
        return self.idle is IdleBehavior.WORLD_WAITS

    def make_buffer(self) -> ActionBuffer:
        """Make an empty buffer that follows this configuration."""
        return ActionBuffer(self.n_action_steps, self.idle is IdleBehavior.REST, self.aligned, self.aggregate)


class Executor(Protocol):
    """Anything that has an :class:`ExecutorConfig`."""

    @property
    def config(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        ...


@dataclass(frozen=True)
class Lockstep:
    """The world waits while the policy computes, as in ordinary simulated evaluations. No robot can have this.

    Attributes:
        n_action_steps: actions of each chunk that are played.
        aggregate: see :class:`ExecutorConfig`.
    """

    n_action_steps: int = 8
    aggregate: Aggregator = field(default_factory=LatestOnly)

    def __post_init__(self) -> None:
        _ = self.config  # validated where it is made

    @property
    def config(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        return ExecutorConfig(self.n_action_steps, idle=IdleBehavior.WORLD_WAITS, aggregate=self.aggregate)


@dataclass(frozen=True)
class Blocking:
    """Plays, then computes, then plays.

    Attributes:
        n_action_steps: actions of each chunk that are played.
        idle: ``"hold"``: the robot stands still while it computes, then plays the chunk from its first action,
            for which it still is in the right place. ``"rest"``: it plays on, as :class:`RecedingHorizon`.
        aggregate: see :class:`ExecutorConfig`.
    """

    n_action_steps: int = 8
    idle: Literal["hold", "rest"] = "hold"
    aggregate: Aggregator = field(default_factory=LatestOnly)

    def __post_init__(self) -> None:
        if self.idle not in ("hold", "rest"):
            raise ValueError(f"idle={self.idle!r}; a blocking executor has 'hold' and 'rest'")
        _ = self.config

    @property
    def config(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        idle = IdleBehavior(self.idle)
        return ExecutorConfig(
            self.n_action_steps, idle=idle, aligned=idle is IdleBehavior.REST, aggregate=self.aggregate
        )


@dataclass(frozen=True)
class RecedingHorizon:
    """Plays ``n_action_steps`` actions, asks for the next chunk, and plays the rest of the present one until it comes.

    The real-time loop of Chi et al. (*Diffusion Policy*, 2023, section IV-D): actions carry the times that they are
    for, and those whose time has passed are dropped.

    Attributes:
        n_action_steps: actions of each chunk that are played before the next one is requested, e.g. 8 of 16.
        aggregate: see :class:`ExecutorConfig`.
    """

    n_action_steps: int = 8
    aggregate: Aggregator = field(default_factory=LatestOnly)

    def __post_init__(self) -> None:
        _ = self.config  # validated where it is made

    @property
    def config(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        return ExecutorConfig(self.n_action_steps, aggregate=self.aggregate)


@dataclass(frozen=True)
class Asynchronous:
    """Computes the next chunk while the present one plays; it takes over as soon as it comes, aligned in time.

    Attributes:
        n_action_steps: actions of each chunk that are played if the next one is late.
        prefetch_steps: ticks before their end at which the next chunk is requested; with ``n_action_steps`` the policy
            computes without pause. None: half of ``n_action_steps``.
        aggregate: see :class:`ExecutorConfig`.
        predictor: see :class:`ExecutorConfig`. The chunk has the policy's distribution at the guessed observation.
    """

    n_action_steps: int = 8
    prefetch_steps: int | None = None
    aggregate: Aggregator = field(default_factory=LatestOnly)
    predictor: Predictor | None = None

    def __post_init__(self) -> None:
        _ = self.config  # validated where it is made

    @property
    def config(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        # checks the number that is halved
        config = ExecutorConfig(self.n_action_steps, aggregate=self.aggregate, predictor=self.predictor)
        half = config.n_action_steps // 2
        return replace(config, prefetch_steps=half if self.prefetch_steps is None else self.prefetch_steps)


@dataclass(frozen=True)
class PreDrafting:
    """Any executor that spends its idle time on a draft of the next chunk, under a predicted observation.

    When the observation comes, the draft is verified under it and corrected. The chunk has the policy's distribution at
    the true observation, whatever was predicted. If the draft takes longer than expected, the observation is kept.

    Attributes:
        executor: whose configuration holds otherwise.
        predraft: when the draft is begun, and under what.
    """

    executor: Executor = field(default_factory=RecedingHorizon)
    predraft: PredraftConfig = field(default_factory=PredraftConfig)

    def __post_init__(self) -> None:
        _ = self.config  # validated where it is made

    @property
    def config(self) -> ExecutorConfig:
        """See :class:`ExecutorConfig`."""
        return replace(self.executor.config, predraft=self.predraft)
