"""A policy and a sampler behind the loop's questions, alone and shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from control_fakes import FakeChunk, FakeDiffusion, FakeSampler, FewSteps

from specpolicy.control.inference import (
    EpisodeState,
    InferenceKind,
    InferenceRequest,
    PolicyRunner,
    can_predraft,
    infer_batch,
    join_predrafts,
    split_predraft,
)
from specpolicy.speculative.predraft import PreDraft


def question(tick: float, kind: InferenceKind = InferenceKind.WHOLE) -> InferenceRequest:
    return InferenceRequest(kind, {"tick": np.array([[tick - 1], [tick]])})


def sessions(count: int, first: int = 0) -> list[EpisodeState]:
    return [EpisodeState(torch.Generator().manual_seed(first + number)) for number in range(count)]


def test_the_first_action_is_for_the_tick_of_the_observation() -> None:
    policy = PolicyRunner(FakeDiffusion(), FakeSampler(passes=8))
    policy.reset(3, 0)
    answer = policy.infer(question(7.0))
    assert answer.actions is not None and answer.actions.shape == (12, 3)
    assert answer.actions[:, 1].tolist() == [8.0 + k for k in range(12)]  # 1 + tick meant
    assert (answer.passes, answer.evaluations, answer.acceptance) == (8, 80, 12 / 15)
    assert answer.seconds is not None and 0 < answer.seconds < 5
    assert policy.n_obs_steps == 2


def test_episodes_have_streams_of_their_own() -> None:
    policy = PolicyRunner(FakeDiffusion(), FakeSampler())

    def grips(seed: int, repeat: int) -> list[float]:
        policy.reset(seed, repeat)
        found = [policy.infer(question(1.0)).actions for _ in range(3)]
        return [float(actions[0, 2]) for actions in found if actions is not None]

    assert grips(0, 0) == grips(0, 0)
    assert len({*grips(0, 0), *grips(0, 1), *grips(1, 0)}) == 9


@pytest.mark.parametrize("kind", list(InferenceKind))
def test_questions_of_many_are_answered_together_and_as_if_alone(kind: InferenceKind) -> None:
    together, alone = FakeDiffusion(), FakeDiffusion()
    many, single = sessions(4), sessions(4)
    if kind is InferenceKind.FINISH:
        for policy, group in ((together, many), (alone, single)):
            infer_batch(policy, FakeSampler(), [(each, question(1.0, InferenceKind.DRAFT)) for each in group])
    answers = infer_batch(together, FakeSampler(), [(each, question(number, kind)) for number, each in enumerate(many)])
    for number, (answer, session) in enumerate(zip(answers, single, strict=True)):
        (expected,) = infer_batch(alone, FakeSampler(), [(session, question(number, kind))])
        assert answer.passes == expected.passes and answer.seconds is None
        if answer.actions is not None and expected.actions is not None:
            np.testing.assert_array_equal(answer.actions, expected.actions)
    assert (together.drafted if kind is InferenceKind.DRAFT else together.batches) == [4]
    if kind is InferenceKind.FINISH:
        assert torch.equal(together.finished[0].states, torch.cat([each.states for each in alone.finished], 1))
        assert all(session.draft is None for session in many)
        assert [answer.passes for answer in answers] == [2] * 4


def test_answers_keep_the_order_of_mixed_questions() -> None:
    policy, group = FakeDiffusion(), sessions(4)
    kinds = [InferenceKind.WHOLE, InferenceKind.DRAFT, InferenceKind.WHOLE, InferenceKind.DRAFT]
    asked = [(each, question(10.0 * n, kind)) for n, (each, kind) in enumerate(zip(group, kinds, strict=True))]
    answers = infer_batch(policy, FakeSampler(), asked)
    assert [None if each.actions is None else each.actions[0, 0] for each in answers] == [1.0, None, 21.0, None]
    assert [session.draft is None for session in group] == [True, False, True, False]


def test_a_failure_is_charged_to_the_culprit_alone() -> None:
    expected = infer_batch(FakeDiffusion(), FakeSampler(), [(each, question(5.0)) for each in sessions(3)])
    answers = infer_batch(FakeDiffusion(poison=1), FakeSampler(), [(each, question(5.0)) for each in sessions(3)])
    assert answers[1].actions is None and "ArithmeticError: simulated failure" in str(answers[1].error)
    for number in (0, 2):
        assert answers[number].error is None
        np.testing.assert_array_equal(answers[number].actions, expected[number].actions)


def test_a_prediction_of_the_wrong_shape_is_a_failure() -> None:
    class Short(FakeDiffusion):
        def predict_action(self, observation: Any, sampler: Any, generator: Any, predraft: Any = None) -> FakeChunk:
            chunk = super().predict_action(observation, sampler, generator, predraft)
            return FakeChunk(chunk.prediction[:, :1], chunk.result)

    (answer,) = infer_batch(Short(), FakeSampler(), [(sessions(1)[0], question(1.0))])
    assert "more than 1 actions" in str(answer.error)


def test_a_draft_that_was_never_made_cannot_be_finished() -> None:
    (answer,) = infer_batch(FakeDiffusion(), FakeSampler(), [(sessions(1)[0], question(1.0, InferenceKind.FINISH))])
    assert "never made" in str(answer.error)


def test_who_can_pre_draft() -> None:
    assert can_predraft(FakeDiffusion(), FakeSampler()) and not can_predraft(FakeDiffusion(), FewSteps())
    assert PolicyRunner(FakeDiffusion(), FakeSampler()).predrafts


def test_pre_drafts_come_apart_and_together() -> None:
    states = torch.randn(6, 3, 4, 2)
    draft = PreDraft(states, states[1:] * 2, states[1:] * 3)
    parts = split_predraft(draft)
    assert len(parts) == 3 and parts[1].states.shape == (6, 1, 4, 2)
    again = join_predrafts(parts)
    assert all(torch.equal(getattr(again, name), getattr(draft, name)) for name in ("states", "x0", "noise"))
