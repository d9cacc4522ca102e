"""What happened in an episode, tick by tick and computation by computation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .questions import Kind


@dataclass
class Job:
    """A computation, filled in as it goes on. Times are seconds since the episode's begin, on the loop's clock.

    Attributes:
        number: counted from 0 in each episode.
        kind: what was computed.
        tick: tick of the observation that it was begun at.
        observed_s: when that observation was taken.
        begun_s: when the computation began.
        ended_s: when it ended; None if it had not.
        passes, evaluations, acceptance, error: as in :class:`specpolicy.control.Answer`.
        handover: tick from which on its chunk was played; None if it never was.
    """

    number: int
    kind: Kind
    tick: int
    observed_s: float
    begun_s: float
    ended_s: float | None = None
    passes: int | None = None
    evaluations: int | None = None
    acceptance: float | None = None
    error: str | None = None
    handover: int | None = None


@dataclass(frozen=True)
class TickRow:
    """One tick: what was sent, from which chunk, and what the guards said. Times as in :class:`Job`.

    Attributes:
        tick: number of the tick on the clock's grid; a number that is missing was skipped, being too late.
        due_s: when the action was due.
        sent_s: when it was sent.
        source: ``"planned"``, ``"rest"`` of a chunk, ``"start"`` (no chunk yet), ``"pause"`` (the executor holds), or
            ``"guard"``.
        job: number of the computation that the action's newest chunk came from; None if no chunk had a part in it.
        observed_s, begun_s, ended_s, passes: of that computation.
        age_s: ``sent_s − observed_s``.
        queue: actions that were left to play, this one included.
        computing: kind of the computation under way after this tick's decisions; None if there was none.
        fault, response: what a guard objected to, and what it did; None if nothing was wrong.
        action: what was sent, environment units.
        reward, success: what came of it.
    """

    tick: int
    due_s: float
    sent_s: float
    source: str
    job: int | None
    observed_s: float | None
    begun_s: float | None
    ended_s: float | None
    passes: int | None
    age_s: float | None
    queue: int
    computing: str | None
    fault: str | None
    response: str | None
    action: tuple[float, ...]
    reward: float
    success: bool


@dataclass
class EpisodeAccount:
    """Everything about one episode.

    Attributes:
        seed, repeat: which episode.
        rate_hz: ticks a second.
        play: actions of each chunk that the executor plays.
        ticks, jobs: in order.
        stopped: the fault for which a guard ended the episode; None if none did.
        faults: how often each fault occurred, those of whole chunks included.
    """

    seed: int
    repeat: int
    rate_hz: float
    play: int
    ticks: list[TickRow] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    stopped: str | None = None
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def success(self) -> bool:
        """Whether ``info["success"]`` was true at some tick."""
        return any(row.success for row in self.ticks)

    @property
    def return_(self) -> float:
        """Sum of rewards."""
        return float(sum(row.reward for row in self.ticks))

    @property
    def skipped(self) -> int:
        """Ticks of the clock at which nothing was sent, because the one before took too long."""
        return self.ticks[-1].tick + 1 - len(self.ticks) if self.ticks else 0
