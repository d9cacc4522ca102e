"""Timed calls of samplers, as they are kept on disk: measured by an evaluation, injected into a control loop."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specpolicy.utils.files import atomic_path

FORMAT = 1


def _check_numbers(what: str, values: Any, least: int = 0) -> None:
    if not isinstance(values, list) or not all(type(value) is int and value >= least for value in values):
        raise TypeError(f"{what} must be whole numbers from {least} on")


@dataclass(frozen=True)
class CallLog:
    """Timed calls of one sampler, in order; entry ``i`` of every sampler saw the same observation and noise.

    Attributes:
        exact: whether the sampler's distribution is the policy's own.
        nanoseconds: duration of each call.
        passes: sequential network evaluations of each call.
        evaluations: rows that the network computed in each call: the sizes of its batches, added up.
        rounds: for each call ``(position in the chain, drafted steps accepted)`` of each round; ``None`` for samplers
            without rounds.
        drafted: for each call how many steps each of these rounds drafted; ``None`` without rounds, and in older files.
        precision: of the network where it was a reduced one, which is then the target; see
            :func:`~specpolicy.policies.protocols.reduced_precision`.
    """

    exact: bool
    nanoseconds: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    rounds: list[list[list[int]]] | None = None
    drafted: list[list[int]] | None = None
    precision: str | None = None


@dataclass(frozen=True)
class LatencyRun:
    """Timed calls of all samplers, and under which conditions.

    Attributes:
        samplers: calls by sampler, in the order in which the samplers were given.
        device: where the policy computed.
        threads: torch's threads.
        warmup: calls of each sampler that were not counted.
        observations: distinct observations in turn.
        provenance: see :func:`collect_provenance`.
    """

    samplers: dict[str, CallLog]
    device: str
    threads: int
    warmup: int
    observations: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write as JSON, completely or not at all.

        Args:
            path: the file.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **asdict(self)}) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> LatencyRun:
        """Read what :meth:`write` wrote.

        Args:
            path: the file.

        Raises:
            ValueError: it is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise KeyError("another format")
            samplers = {name: CallLog(**log) for name, log in content.pop("samplers").items()}
            run = cls(samplers=samplers, **content)
            run._check()
            return run
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path} is not a latency measurement of format {FORMAT} ({reason}): delete it and measure again"
            ) from error

    def _check(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` where a field is not what it should be."""
        if not isinstance(self.device, str) or not isinstance(self.provenance, dict):
            raise TypeError("device must be a text and provenance an object")
        for number in (self.threads, self.warmup, self.observations):
            _check_numbers("threads, warmup, observations", [number])
        for name, log in self.samplers.items():
            if not isinstance(log.exact, bool):
                raise TypeError(f"{name}: exact must be true or false")
            if not isinstance(log.precision, str | None):
                raise TypeError(f"{name}: precision must be a text or null")
            _check_numbers(f"{name}: nanoseconds", log.nanoseconds, least=1)
            _check_numbers(f"{name}: passes", log.passes)
            _check_numbers(f"{name}: evaluations", log.evaluations)
            rounds = log.rounds or []
            for each in (one for call in rounds for one in call):
                _check_numbers(f"{name}: rounds", each)
                if len(each) != 2:
                    raise ValueError(f"{name}: a round has a start and a number of accepted steps")
            for drafted in log.drafted or []:
                _check_numbers(f"{name}: drafted", drafted)
            if log.drafted is not None and [len(each) for each in log.drafted] != [len(call) for call in rounds]:
                raise ValueError(f"{name}: as many drafts as rounds are expected")
