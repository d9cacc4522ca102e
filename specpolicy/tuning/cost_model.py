"""Cost of a round on this device, by its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specpolicy.speculative.result import SampleResult
from specpolicy.utils.progress import progress_bar


@dataclass(frozen=True)
class RoundCost:
    """Time of a network evaluation by its rows, and of all else in a round.

    Attributes:
        rows, milliseconds: measured evaluations, rows rising; in between it is interpolated, beyond extrapolated.
        overhead_ms: drafting and verification of a round, whatever its length.
        overhead_row_ms: of each row more.
        extra_evaluation: whether each round begins with an evaluation of its own, of one row.
        has_initial_guess: whether the first round does without an evaluation at pure noise.
    """

    rows: Sequence[int]
    milliseconds: Sequence[float]
    overhead_ms: float = 0.0
    overhead_row_ms: float = 0.0
    extra_evaluation: bool = False
    has_initial_guess: bool = False

    def of_evaluation(self, rows: int) -> float:
        """Interpolate the milliseconds of an evaluation.

        Args:
            rows: evaluated at once.

        Returns:
            Milliseconds.
        """
        x, y = self.rows, self.milliseconds
        if rows > x[-1] and len(x) > 1:
            return y[-1] + (rows - x[-1]) * max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2]))
        return float(np.interp(rows, x, y))

    def __call__(self, position: int, window: int) -> float:
        """Milliseconds of a round that begins at ``position`` and drafts ``window`` steps."""
        # Where the x̂0 of the start is found beforehand, the evaluation of the window need not repeat it.
        beforehand = self.extra_evaluation if position else not self.has_initial_guess
        rows = window + (0 if beforehand else 1)
        passes = (self.of_evaluation(1) if beforehand else 0.0) + (self.of_evaluation(rows) if rows else 0.0)
        return passes + self.overhead_ms + self.overhead_row_ms * rows


def measure_evaluations(
    evaluate: Callable[[int], None],
    rows: Sequence[int],
    *,
    repeats: int = 20,
    warmup: int = 3,
    synchronize: Callable[[], None] | None = None,
    seed: int = 0,
) -> list[float]:
    """Measure the median milliseconds of network evaluations.

    They take turns in shuffled order, so that what disturbs the machine hits all of them alike.

    Args:
        evaluate: evaluates the network once on so many rows.
        rows: how many.
        repeats: counted evaluations of each.
        warmup: evaluations of each before these, which are not counted.
        synchronize: waits for the device.
        seed: of the order.

    Raises:
        ValueError: nothing to measure.
    """
    if not rows or repeats < 1 or warmup < 0:
        raise ValueError(f"rows={list(rows)}, repeats={repeats}, warmup={warmup}: there is nothing to measure")
    wait = synchronize or (lambda: None)
    turns, taken = np.random.default_rng(seed), np.zeros((repeats, len(rows)))
    with progress_bar("timing evaluations", repeats + warmup) as bar:
        for repeat in range(-warmup, repeats):
            for index in turns.permutation(len(rows)):
                wait()
                begin = time.perf_counter_ns()
                evaluate(rows[index])
                wait()
                if repeat >= 0:
                    taken[repeat, index] = (time.perf_counter_ns() - begin) / 1e6
            bar.advance()
    return [float(median) for median in np.median(taken, axis=0)]


@dataclass(frozen=True)
class TimedCall:
    """One call of a sampler at batch size 1: how long it took, the network's part of it, its rounds and rows."""

    milliseconds: float
    network_ms: float
    rounds: int
    rows: int


def fit_overhead(calls: Sequence[TimedCall]) -> tuple[float, float]:
    """(a round's, a row's) milliseconds outside the network, none negative: least squares over the calls.

    Raises:
        ValueError: there are no calls.
    """
    if not calls:
        raise ValueError("no timed call to fit the overhead to")
    counts = np.array([[call.rounds, call.rows] for call in calls], dtype=np.float64)
    rest = np.array([call.milliseconds - call.network_ms for call in calls])
    solution = np.linalg.lstsq(counts, rest, rcond=None)[0]
    if (solution >= 0).all():
        return float(solution[0]), float(solution[1])
    per_round = max(0.0, float(rest @ counts[:, 0] / (counts[:, 0] @ counts[:, 0])))
    per_row = max(0.0, float(rest @ counts[:, 1] / (counts[:, 1] @ counts[:, 1])))
    left_by_round = ((rest - per_round * counts[:, 0]) ** 2).sum()
    left_by_row = ((rest - per_row * counts[:, 1]) ** 2).sum()
    return (per_round, 0.0) if left_by_round <= left_by_row else (0.0, per_row)


def timed_call(
    sample: Callable[[Callable[..., torch.Tensor]], SampleResult],
    denoiser: Callable[..., torch.Tensor],
    synchronize: Callable[[], None] | None = None,
) -> TimedCall:
    """Time one call of a sampler, and the network within it.

    Args:
        sample: calls the sampler for one chain with the denoiser that it is handed.
        denoiser: the network.
        synchronize: waits for the device.
    """
    wait, within = synchronize or (lambda: None), [0]

    def listened(*arguments: object) -> torch.Tensor:
        wait()
        begin = time.perf_counter_ns()
        output = denoiser(*arguments)
        wait()
        within[0] += time.perf_counter_ns() - begin
        return output

    wait()
    begin = time.perf_counter_ns()
    result = sample(listened)
    wait()
    taken = time.perf_counter_ns() - begin
    rounds = int((result.start >= 0).sum()) if result.start is not None else int(result.passes.sum())
    return TimedCall(taken / 1e6, within[0] / 1e6, rounds, int(result.evaluations.sum()))
