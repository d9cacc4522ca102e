"""What is asked for when, and what is played meanwhile."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from control_fakes import GRIP, SPEC, Meant, TickEnv, TickPolicy, meant

from specpolicy.control.action_buffer import TemporalEnsemble
from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.executors import (
    Asynchronous,
    Blocking,
    Executor,
    ExecutorConfig,
    IdleBehavior,
    LastObservation,
    LinearObservation,
    Lockstep,
    PredraftConfig,
    PreDrafting,
    RecedingHorizon,
)
from specpolicy.control.inference import InferenceKind
from specpolicy.control.latency import Constant
from specpolicy.control.loop import ControlLoop
from specpolicy.control.trace import EpisodeTrace

HELD = Meant(None, None)


def play(
    executor: Executor, latency_s: float = 0.0, limit: int = 40, policy: TickPolicy | None = None
) -> tuple[EpisodeTrace, list[Meant], TickPolicy, TickEnv]:
    env, policy = TickEnv(limit), policy or TickPolicy()
    clock = SimulatedLatencyClock(20.0, Constant(latency_s))
    trace = ControlLoop(env, policy, executor, clock, action_spec=SPEC).run(seed=0)
    return trace, meant(env.actions), policy, env


@pytest.mark.parametrize("executor", [Lockstep(4), Blocking(4), Blocking(4, "rest"), RecedingHorizon(4)])
def test_without_latency_all_that_wait_for_the_end_of_a_chunk_are_alike(executor: Executor) -> None:
    _, sent, policy, _ = play(executor)
    assert sent == [Meant(4 * (tick // 4), tick) for tick in range(40)]
    assert policy.ticks_asked() == list(range(0, 40, 4))


@pytest.mark.parametrize("latency_s", [0.0, 0.05, 0.12, 3.0])
def test_in_lockstep_the_world_does_not_notice_the_latency(latency_s: float) -> None:
    trace, sent, _, _ = play(Lockstep(4), latency_s)
    assert sent == [Meant(4 * (tick // 4), tick) for tick in range(40)]
    first = [row for row in trace.ticks if row.tick % 4 == 0]
    assert [row.age_s for row in first] == pytest.approx([latency_s] * 10)
    assert trace.ticks[-1].sent_s == pytest.approx(39 / 20 + 10 * latency_s)
    assert all(row.sent_s == pytest.approx(row.due_s) for row in trace.ticks)


def test_blocking_holds_and_then_begins_with_the_first_action() -> None:
    trace, sent, policy, env = play(Blocking(4), 0.11, limit=14)  # 0.11 s at 20 Hz: there at the third tick
    assert policy.ticks_asked() == [0, 7]
    assert [each.tick for each in sent[3:7]] == [0, 1, 2, 3] and sent[7:10] == [HELD] * 3
    assert [each.tick for each in sent[10:]] == [7, 8, 9, 10]
    grip = [float(action[2]) for action in env.actions]
    assert grip == [-1.0] * 3 + [GRIP] * 11  # kept while holding; the initial value before anything was sent
    assert [row.source for row in trace.ticks] == ["start"] * 3 + ["planned"] * 4 + ["pause"] * 3 + ["planned"] * 4
    assert not trace.faults  # it holds by design


def test_receding_horizon_plays_the_rest_and_drops_what_has_passed() -> None:
    trace, sent, policy, _ = play(RecedingHorizon(4), 0.1, limit=20)
    assert policy.ticks_asked() == [0, 6, 12, 18]  # 2 ticks of latency and 4 of play each
    assert all(each.tick == tick for tick, each in enumerate(sent) if each != HELD)
    assert [each.observed for each in sent[2:]] == [0] * 6 + [6] * 6 + [12] * 6
    assert [row.source for row in trace.ticks[2:8]] == ["planned"] * 4 + ["rest"] * 2


def test_asynchronous_asks_early_enough_to_play_without_a_gap() -> None:
    trace, sent, policy, _ = play(Asynchronous(4, 2), 0.1, limit=20)
    assert policy.ticks_asked() == [0, 4, 8, 12, 16]
    assert all(each.tick == tick for tick, each in enumerate(sent) if each != HELD)
    assert [row.source for row in trace.ticks] == ["start"] * 2 + ["planned"] * 18


def test_asynchronous_without_pause_asks_whenever_the_last_answer_has_come() -> None:
    _, sent, policy, _ = play(Asynchronous(6, 6), 0.15, limit=20)
    assert policy.ticks_asked() == list(range(0, 20, 3))
    assert all(each.tick == tick for tick, each in enumerate(sent) if each != HELD)
    assert play(Asynchronous(6, 6), 0.0, limit=9)[2].ticks_asked() == list(range(9))


def test_a_chunk_that_comes_when_all_of_it_has_passed_is_worth_nothing() -> None:
    trace, sent, policy, _ = play(Asynchronous(8, 4), 0.6, policy=TickPolicy(length=12))  # 12 ticks
    assert sent == [HELD] * 40
    assert policy.ticks_asked() == [0, 12, 24, 36]
    assert trace.faults["stale"] == 3
    trace, sent, _, _ = play(Asynchronous(8, 4), 0.6, policy=TickPolicy(length=13))
    assert [tick for tick, each in enumerate(sent) if each != HELD] == [12, 24, 36]  # one action of each
    assert trace.faults["missed"] > 0


@pytest.mark.parametrize("executor", [RecedingHorizon(4), Asynchronous(6, 2), Blocking(4), Lockstep(4)])
def test_a_pre_draft_is_made_while_the_chunk_plays_and_finished_with_the_observation(executor: Executor) -> None:
    trace, _, policy, _ = play(PreDrafting(executor, PredraftConfig(2)), 0.1)
    kinds = [inference.kind for inference in trace.inferences]
    assert kinds[0] is InferenceKind.WHOLE and kinds[1::2] == [InferenceKind.DRAFT] * len(kinds[1::2])
    assert kinds[2::2] == [InferenceKind.FINISH] * len(kinds[2::2]) and len(kinds) > 5
    for draft, finish in zip(trace.inferences[1::2], trace.inferences[2::2], strict=False):
        assert draft.ended_s is not None and draft.ended_s <= finish.begun_s + 1e-9
        assert finish.tick - draft.tick == 2  # two ticks of latency: the draft is there just in time
        assert finish.ended_s == pytest.approx(finish.begun_s + 0.1 * 2 / 8)  # its share of the evaluations
    assert len(policy.asked) == len(trace.inferences)


def test_a_draft_that_is_late_does_not_choose_its_observation() -> None:
    trace, sent, policy, _ = play(PreDrafting(RecedingHorizon(6), PredraftConfig(1)), 0.2, limit=30)
    whole, draft, finish = trace.inferences[:3]
    assert (whole.handover, draft.tick) == (4, 9)  # due at tick 10, and four ticks of latency
    assert finish.tick == 10 and finish.observed_s == pytest.approx(10 / 20)
    assert finish.begun_s == pytest.approx(13 / 20) and policy.ticks_asked(InferenceKind.FINISH)[0] == 10
    assert finish.handover == 14 and sent[14] == Meant(10, 14)


@pytest.mark.parametrize(("latency_s", "ahead"), [(0.0, 1), (0.05, 1), (0.1, 2), (0.17, 4)])
def test_a_draft_is_begun_as_late_as_it_may_be(latency_s: float, ahead: int) -> None:
    trace, _, _, _ = play(PreDrafting(RecedingHorizon(6)), latency_s)
    drafts = [inference for inference in trace.inferences if inference.kind is InferenceKind.DRAFT]
    finishes = [inference for inference in trace.inferences if inference.kind is InferenceKind.FINISH]
    assert len(finishes) > 3
    assert [finish.tick - draft.tick for draft, finish in zip(drafts, finishes, strict=False)] == [ahead] * len(
        finishes
    )
    assert all(finish.begun_s == finish.observed_s for finish in finishes)  # none had to wait


def test_pre_drafts_see_the_predicted_observation() -> None:
    for linear in (LinearObservation(), None):  # what is taken without a choice
        _, _, policy, _ = play(PreDrafting(RecedingHorizon(4), PredraftConfig(3, linear)), 0.0)
        drafts = [each for each in policy.asked if each.kind is InferenceKind.DRAFT]
        assert [int(each.window["tick"][-1, 0]) for each in drafts[1:5]] == [8, 12, 16, 20]  # made at 5, 9, 13, 17
        assert all(each.window["tick"][0, 0] == each.window["tick"][1, 0] - 1 for each in drafts[1:5])
    _, _, policy, _ = play(PreDrafting(RecedingHorizon(4), PredraftConfig(3, LastObservation())), 0.0)
    assert policy.ticks_asked(InferenceKind.DRAFT)[1:5] == [5, 9, 13, 17]


def test_a_failed_draft_costs_nothing_but_the_draft() -> None:
    def spoil(number: int, answer: object) -> object:
        from specpolicy.control.inference import InferenceResult

        return InferenceResult(error="boom") if number == 1 else answer

    policy = TickPolicy(spoil=spoil)  # type: ignore[arg-type]
    trace, sent, _, _ = play(PreDrafting(RecedingHorizon(4), PredraftConfig(2)), 0.0, policy=policy)
    assert [inference.kind for inference in trace.inferences[:4]] == [
        InferenceKind.WHOLE,
        InferenceKind.DRAFT,
        InferenceKind.WHOLE,
        InferenceKind.DRAFT,
    ]
    assert trace.faults == {"failure": 1} and trace.inferences[1].error == "boom"
    assert all(each.tick == tick for tick, each in enumerate(sent))


def test_temporal_ensembling_weighs_the_oldest_chunk_most() -> None:
    decay = 0.5
    _, _, _, env = play(Asynchronous(1, 1, aggregate=TemporalEnsemble(decay)), 0.0, limit=20)
    for tick, action in enumerate(env.actions):
        observed = np.arange(max(tick - 11, 0), tick + 1)  # of chunks of 12 actions that still cover this tick
        weights = np.exp(-decay * np.arange(len(observed)))
        assert action[0] - 1 == pytest.approx(weights @ observed / weights.sum(), abs=1e-4)
        assert action[1] - 1 == pytest.approx(tick, abs=1e-4)


def test_ensembling_composes_with_the_executors_that_align_in_time() -> None:
    for executor in (
        Lockstep(2, TemporalEnsemble()),
        RecedingHorizon(2, TemporalEnsemble()),
        Blocking(2, "rest", TemporalEnsemble()),
    ):
        _, _, _, env = play(executor, 0.05, limit=12)
        assert 1 < env.actions[-1][0] < 11 and env.actions[-1][1] == pytest.approx(12)
    with pytest.raises(ValueError, match="begin on arrival cannot be aggregated"):
        Blocking(2, "hold", TemporalEnsemble())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ExecutorConfig(0), "at least 1 action"),
        (lambda: ExecutorConfig(4, prefetch_steps=5), "expected 0 to n_action_steps=4"),
        (lambda: PredraftConfig(0), "at least 1"),
        (lambda: TemporalEnsemble(-1.0), "must not be negative"),
        (lambda: LinearObservation(2.0), "damping=2.0"),
        (lambda: Blocking(4, "sleep"), "has 'hold' and 'rest'"),  # type: ignore[arg-type]
        (lambda: play(PreDrafting(), policy=TickPolicy(predrafts=False)), "has no predraft"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]


def test_control_stands_on_its_own() -> None:
    """Neither a simulator nor what only tables and pictures need: a robot's computer may have none of them."""
    absent = ("robosuite", "mujoco", "specpolicy_envs", "specpolicy.evaluation", "pyarrow", "matplotlib", "scipy.stats")
    program = f"import sys, specpolicy.control; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_world_waits_in_lockstep_only() -> None:
    named = {type(each).__name__: each.config for each in (Lockstep(), Blocking(), RecedingHorizon(), Asynchronous())}
    assert [name for name, config in named.items() if config.world_waits] == ["Lockstep"]
    assert named["Blocking"].idle is IdleBehavior.HOLD and not named["Blocking"].aligned
    assert math.isclose(sum(config.prefetch_steps for config in named.values()), 4)
