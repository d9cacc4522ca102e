"""Chunks for predicted observations: what the predictor is given, where chunks begin, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from control_fakes import SPEC, TickEnv, TickPolicy, meant
from numpy.typing import NDArray

from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.executors import (
    Asynchronous,
    ExecutorConfig,
    IdleBehavior,
    LastObservation,
    LinearObservation,
    Predictor,
    PredraftConfig,
    PreDrafting,
)
from specpolicy.control.latency import Constant, Empirical, Latency
from specpolicy.control.loop import ControlLoop
from specpolicy.control.metrics import measure
from specpolicy.control.trace import EpisodeTrace


@dataclass
class CountOn:
    """Knows the world of :class:`TickEnv`, and remembers what it was given."""

    given: list[tuple[int, int, NDArray[np.float64]]] = field(default_factory=list)

    def __call__(self, window: Any, ticks: int, actions: NDArray[np.float64]) -> Any:
        self.given.append((int(window["tick"][-1, 0]), ticks, actions))
        return {"tick": window["tick"] + ticks}


def play(
    executor: Asynchronous, latency: Latency, policy: TickPolicy | None = None
) -> tuple[EpisodeTrace, TickPolicy, TickEnv]:
    env, policy = TickEnv(40), policy or TickPolicy()
    loop = ControlLoop(env, policy, executor, SimulatedLatencyClock(20.0, latency), action_spec=SPEC)
    return loop.run(seed=0), policy, env


@pytest.mark.parametrize("ticks", [1, 2, 4])
def test_the_policy_sees_what_is_predicted_for_the_tick_at_which_its_chunk_takes_over(ticks: int) -> None:
    predictor = CountOn()
    trace, policy, env = play(Asynchronous(4, 4, predictor=predictor), Constant(ticks / 20))
    first, *others = trace.inferences
    assert (first.tick, first.predicted) == (0, None), "nothing is under way yet"
    assert {each.predicted for each in others} == {ticks}
    assert policy.ticks_asked() == [each.tick for each in trace.inferences]
    assert [tick for tick, _, _ in predictor.given] == [each.tick - ticks for each in others]
    assert [each.observed_s for each in others] == pytest.approx([(each.tick - ticks) / 20 for each in others])
    for tick, ahead, actions in predictor.given:
        played = env.actions[tick : tick + ticks]
        assert ahead == len(actions) == ticks
        np.testing.assert_array_equal(actions[: len(played)].astype(np.float32), played)
    for tick, each in list(enumerate(meant(env.actions)))[2 * ticks :]:
        assert each.tick == tick, "every action is played at the tick that it was meant for"
        assert each.observed is not None and tick - each.observed < 4, "chunks are played from their first action on"
    assert measure([trace]).outran == 0.0


def test_without_latency_nothing_is_predicted_and_the_executor_is_what_it_was() -> None:
    predictor = CountOn()
    trace, _, env = play(Asynchronous(4, 2, predictor=predictor), Constant(0.0))
    plain, _, same = play(Asynchronous(4, 2), Constant(0.0))
    assert not predictor.given
    np.testing.assert_array_equal(env.actions, same.actions)
    assert [each.tick for each in trace.inferences] == [each.tick for each in plain.inferences]


@pytest.mark.parametrize(("ticks", "cycle"), [(1, 2), (2, 4), (4, 4), (6, 6)])
def test_chunks_are_requested_early_enough_to_follow_one_another(ticks: int, cycle: int) -> None:
    """A cycle is as long as in lockstep, unless a chunk takes longer than that; asked sooner, it is shorter."""
    trace, _, _ = play(Asynchronous(4, 3 if ticks == 1 else None, predictor=CountOn()), Constant(ticks / 20))
    handovers = [each.handover for each in trace.inferences if each.handover is not None]
    assert set(np.diff(handovers[2:])) == {cycle}


def test_a_chunk_that_is_there_sooner_waits_for_its_tick_and_the_expectation_falls_again() -> None:
    slow_then_fast = Empirical([0.05, 0.2])
    trace, _, env = play(Asynchronous(6, 6, predictor=CountOn()), slow_then_fast)
    for each in trace.inferences:
        assert each.handover is None or each.handover >= each.tick
    assert all(each.tick == tick for tick, each in enumerate(meant(env.actions)) if each.tick is not None)
    needed = {round(20 * (each.ended_s - each.observed_s)) for each in trace.inferences if each.ended_s is not None}
    assert needed == {1, 4}
    delays: list[int] = []
    for record in trace.inferences:
        assert (record.predicted or 0) == max(delays[-8:], default=0)
        if record.handover is not None and record.ended_s is not None:
            delays.append(round(20 * (record.ended_s - record.observed_s)))


def test_a_chunk_that_is_later_than_expected_is_played_and_counted() -> None:
    @dataclass(frozen=True)
    class Slower:
        typical_s: float = 0.05

        def seconds(self, random: np.random.Generator, measured: Any, share: float) -> float:
            slower.append(0.05 if len(slower) < 3 else 0.05 * len(slower))
            return slower[-1]

    slower: list[float] = []
    trace, _, env = play(Asynchronous(4, 4, predictor=CountOn()), Slower())
    late = [each for each in trace.inferences if each.outran]
    assert late and all(each.handover is not None and each.handover > each.tick for each in late)
    assert all(each.tick == tick for tick, each in enumerate(meant(env.actions)) if each.tick is not None)


def test_a_delay_conditioned_policy_is_told_no_actions_that_are_in_the_observation() -> None:
    class Delayed(TickPolicy):
        max_delay = 4

    _, policy, _ = play(Asynchronous(4, 4, predictor=CountOn()), Constant(0.1), Delayed())
    assert policy.asked[0].prefix is None
    assert all(each.prefix is not None and len(each.prefix) == 0 for each in policy.asked[1:])


def test_a_predictor_that_fails_is_a_failed_inference_at_once() -> None:
    def broken(window: Any, ticks: int, actions: Any) -> Any:
        raise ZeroDivisionError("no idea")

    trace, _, _ = play(Asynchronous(4, 4, predictor=broken), Constant(0.1))
    failed = [each for each in trace.inferences if each.error is not None]
    assert failed and all(each.predicted == 0 for each in failed)
    assert trace.faults["failure"] and "no idea" in str(trace.reason)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExecutorConfig(4, idle=IdleBehavior.HOLD, aligned=False, predictor=LastObservation()), "plays none"),
        (lambda: ExecutorConfig(4, idle=IdleBehavior.WORLD_WAITS, predictor=LastObservation()), "plays none"),
        (lambda: PreDrafting(Asynchronous(4, predictor=LastObservation())), "choose one of them"),
    ],
)
def test_a_predictor_where_it_has_no_place_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_pre_drafts_are_predicted_from_the_actions_until_their_observation() -> None:
    predictor = CountOn()
    executor = PreDrafting(Asynchronous(6, 0), PredraftConfig(3, predictor))
    env = TickEnv(40)
    ControlLoop(env, TickPolicy(), executor, SimulatedLatencyClock(20.0, Constant(0.1)), action_spec=SPEC).run(seed=0)
    assert len(predictor.given) >= 3
    for tick, ahead, actions in predictor.given:
        assert ahead == len(actions) == 3
        np.testing.assert_array_equal(actions.astype(np.float32), env.actions[tick : tick + 3])


def test_extrapolation_moves_every_step_of_the_window() -> None:
    window = {"x": np.array([[1.0], [3.0]], np.float32), "n": np.array([[1], [2]])}
    guesses: list[tuple[Predictor, list[float]]] = [
        (LinearObservation(), [5.0, 7.0]), (LinearObservation(0.5), [3.0, 5.0]), (LastObservation(), [1.0, 3.0])
    ]  # fmt: skip
    for predictor, expected in guesses:
        guess = predictor(window, 2, np.zeros((2, 1)))
        assert guess["x"].ravel().tolist() == expected and guess["x"].dtype == np.float32
        np.testing.assert_array_equal(guess["n"], window["n"])
