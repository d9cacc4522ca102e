"""Which actions a delay-conditioned policy is told, by which executor, and what is counted when it is later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from control_fakes import SPEC, TickEnv, TickPolicy

from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.executors import (
    Asynchronous,
    Blocking,
    Executor,
    Lockstep,
    PredraftConfig,
    PreDrafting,
    RecedingHorizon,
)
from specpolicy.control.inference import InferenceKind
from specpolicy.control.latency import Constant, Empirical, Latency
from specpolicy.control.loop import ControlLoop
from specpolicy.control.metrics import measure
from specpolicy.control.trace import EpisodeTrace


@dataclass
class DelayPolicy(TickPolicy):
    """A :class:`TickPolicy` that continues up to so many actions."""

    max_delay: int = 4


def play(executor: Executor, latency: Latency, max_delay: int = 4) -> tuple[EpisodeTrace, DelayPolicy, TickEnv]:
    env, policy = TickEnv(40), DelayPolicy(max_delay=max_delay)
    loop = ControlLoop(env, policy, executor, SimulatedLatencyClock(20.0, latency), action_spec=SPEC)
    return loop.run(seed=0), policy, env


@pytest.mark.parametrize("executor", [Asynchronous(4, 2), Asynchronous(6, 6), RecedingHorizon(4)])
@pytest.mark.parametrize("ticks", [0, 1, 2, 4])
def test_what_plays_while_it_computes_is_handed_over(executor: Executor, ticks: int) -> None:
    trace, policy, env = play(executor, Constant(ticks / 20))
    first, *others = policy.asked
    assert first.prefix is None, "nothing is under way yet"
    assert others
    for tick, request in zip(policy.ticks_asked()[1:], others, strict=True):
        assert request.prefix is not None and len(request.prefix) == ticks
        played = env.actions[tick : tick + ticks]
        for told, sent in zip(request.prefix, played, strict=False):
            np.testing.assert_array_equal(np.asarray(told, np.float32), sent)
    assert [each.prefix for each in trace.inferences] == [None] + [ticks] * len(others)
    assert measure([trace]).outran == 0.0


def test_a_latency_beyond_the_policys_is_played_and_counted() -> None:
    trace, policy, _ = play(Asynchronous(4, 4), Constant(0.3), max_delay=4)
    assert [len(each.prefix) for each in policy.asked if each.prefix is not None] == [4] * (len(policy.asked) - 1)
    played = [each for each in trace.inferences[1:] if each.handover is not None]
    assert len(played) > 3 and all(each.outran for each in played)
    assert measure([trace]).outran == 1.0


def test_the_slowest_of_the_last_chunks_is_expected() -> None:
    trace, policy, _ = play(Asynchronous(6, 6), Empirical([0.05, 0.15]))
    delays: list[int] = []
    for record, request in zip(trace.inferences, policy.asked, strict=True):
        assert (0 if request.prefix is None else len(request.prefix)) == max(delays[-8:], default=0)
        if record.handover is not None:
            delays.append(record.handover - record.tick)
    assert set(delays) == {1, 3}


@pytest.mark.parametrize("executor", [Lockstep(4), Blocking(4)])
def test_where_nothing_plays_meanwhile_nothing_is_told(executor: Executor) -> None:
    trace, policy, _ = play(executor, Constant(0.1))
    assert all(each.prefix is None for each in policy.asked)
    assert all(each.prefix is None and not each.outran for each in trace.inferences)
    assert measure([trace]).outran is None


def test_a_policy_without_delays_is_told_nothing() -> None:
    _, policy, _ = play(Asynchronous(4, 2), Constant(0.1), max_delay=0)
    assert all(each.prefix is None for each in policy.asked)


def test_a_pre_draft_and_its_finish_are_told_the_same() -> None:
    _, policy, env = play(PreDrafting(RecedingHorizon(6), PredraftConfig(3)), Constant(0.2))
    drafts = [each for each in policy.asked if each.kind is InferenceKind.DRAFT]
    finishes = [each for each in policy.asked if each.kind is InferenceKind.FINISH]
    ticks = policy.ticks_asked(InferenceKind.FINISH)
    assert len(finishes) >= 2
    for tick, draft, finish in zip(ticks, drafts, finishes, strict=False):
        assert draft.prefix is finish.prefix and finish.prefix is not None and len(finish.prefix)
        played = np.array(env.actions[tick : tick + len(finish.prefix)])
        told = np.asarray(finish.prefix, np.float32)[: len(played)]
        late = next(k for k, row in enumerate([*played, None]) if row is None or not np.array_equal(row, told[k]))
        assert late >= 1, "until the chunk is there"
