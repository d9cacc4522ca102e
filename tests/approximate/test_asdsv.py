"""ASDSV: who makes which steps, what is counted, and that nobody calls it exact."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from specpolicy import ReverseProcess, SequentialSampler
from specpolicy.approximate.asdsv import AsdsvSampler, DraftSchedule, ThresholdVerifier, asdsv_fast, asdsv_slow
from specpolicy.speculative.exactness import check_exactness

STEPS = 50
STAGES = DraftSchedule(alone=0.1, warm_up=0.2, short=4, long=9)  # 5 steps, then 10 in fours, then nines


def process(steps: int = STEPS) -> ReverseProcess:
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=False)
    return ReverseProcess.from_scheduler(scheduler, steps)


class Network:
    """ε of data at ``centre``, which counts its calls and rows."""

    def __init__(self, centre: float = 0.3, wrong: float = 0.0, wrong_below: int = 100) -> None:
        self.alpha_bars = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2").alphas_cumprod
        self.centre, self.wrong, self.wrong_below = centre, wrong, wrong_below
        self.calls, self.rows = 0, 0

    def __call__(self, x: Tensor, timestep: Tensor, cond: Any) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        alpha = self.alpha_bars[timestep].to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        noise = (x - alpha.sqrt() * self.centre) / (1 - alpha).sqrt() * 0.9
        away = (timestep < self.wrong_below).to(x.dtype).view(alpha.shape)
        return noise + self.wrong * away


def noise(batch: int = 1) -> Tensor:
    return torch.randn(batch, 4, 3, generator=torch.Generator().manual_seed(0))


def seeds(*each: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in each]


def test_an_identical_draft_is_always_taken_and_a_round_costs_one_pass() -> None:
    target, draft = Network(), Network()
    result = AsdsvSampler(process(), draft, ThresholdVerifier(0.02), STAGES)(target, noise(), generator=seeds(1))
    assert result.start is not None and result.accepted is not None and result.proposed is not None
    drafted = result.proposed[:, 0] > 0
    assert result.start[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 9, 13, 17, 26, 35, 44]
    assert result.accepted[drafted, 0].tolist() == [4, 4, 4, 9, 9, 9, 6] and result.acceptance == 1.0
    # 5 alone, one first look at the first draft's start, and one pass for each of the 7 drafts
    assert result.passes.item() == target.calls == 5 + 1 + 7
    assert result.evaluations.item() == target.rows == 5 + 1 + 2 * 6 + 1, "the last draft has no next round to look at"
    assert result.draft_passes is not None and result.draft_passes.item() == draft.calls == 45


def test_a_wrong_draft_leaves_every_step_to_the_target() -> None:
    target, draft = Network(), Network(wrong=0.5)
    sampler = AsdsvSampler(process(), draft, ThresholdVerifier(0.02), STAGES)
    result = sampler(target, noise(3), generator=seeds(1, 2, 3), record=True)
    assert result.acceptance == 0.0 and (result.passes == STEPS).all() and (result.evaluations == STEPS).all()
    assert result.draft_passes is not None and (result.draft_passes == STEPS - 5).all(), "the first look ends a draft"
    # the same random streams, the same steps
    sequential = SequentialSampler(process())(Network(), noise(3), generator=seeds(1, 2, 3))
    torch.testing.assert_close(result.sample, sequential.sample)


def test_a_draft_that_goes_wrong_at_its_end_is_dropped_whole() -> None:
    """Wrong below timestep 40: the first look at a draft across that border sees nothing, the last one does."""
    target = Network()
    result = AsdsvSampler(process(), Network(wrong=0.5, wrong_below=40), ThresholdVerifier(0.02), STAGES)(
        target, noise(), generator=seeds(1)
    )
    assert result.start is not None and result.accepted is not None
    border = int((process().timesteps >= 40).sum())
    starts, taken = result.start[:, 0], result.accepted[:, 0]
    assert (taken[(starts > 4) & (starts + 9 <= border)] > 0).all()
    assert (taken[starts + 8 >= border] == 0).all() and (starts + 8 >= border).sum() > STEPS - border
    assert result.passes.item() == target.calls


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_delta_of_zero_accepts_nothing_and_infinity_never_looks(norm: str) -> None:
    target = Network()
    none = AsdsvSampler(process(), Network(), ThresholdVerifier(0.0, norm), STAGES)(target, noise())
    assert none.acceptance == 0.0 and none.passes.item() == STEPS
    target, draft = Network(), Network(wrong=5.0)
    every = AsdsvSampler(process(), draft, ThresholdVerifier(math.inf, norm), STAGES)(target, noise())
    assert every.acceptance == 1.0 and every.passes.item() == target.calls == 5
    assert every.draft_passes is not None and every.draft_passes.item() == draft.calls == STEPS - 5


def test_the_threshold_is_a_mean_over_the_event() -> None:
    first, second = torch.zeros(3, 2, 2), torch.tensor([0.1, 0.3, 0.0])[:, None, None].repeat(1, 2, 2)
    second[2, 0, 0] = 0.8
    assert ThresholdVerifier(0.25).agrees(first, second).tolist() == [True, False, True]
    assert ThresholdVerifier(0.25, "l2").agrees(first, second).tolist() == [True, False, False]


def test_a_chain_does_not_depend_on_its_neighbours() -> None:
    def target(x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        return Network()(x, timestep, None) + 0.01 * cond.view(-1, 1, 1)

    cond = torch.tensor([0.0, 1.0, 5.0])  # the draft is right for the first two and wrong for the third
    sampler = AsdsvSampler(process(), Network(), ThresholdVerifier(0.02), STAGES)
    together = sampler(target, noise(3), cond, seeds(1, 2, 3))
    assert together.passes[2] == STEPS and (together.passes[:2] < 20).all()
    for row in range(3):
        alone = sampler(target, noise(3)[row : row + 1], cond[row : row + 1], seeds(row + 1))
        torch.testing.assert_close(alone.sample[0], together.sample[row])
        assert alone.passes[0] == together.passes[row] and alone.evaluations[0] == together.evaluations[row]


def test_nobody_calls_it_exact_and_a_loose_threshold_shows_in_the_law() -> None:
    sampler = AsdsvSampler(process(12), Network(wrong=0.3), ThresholdVerifier(0.5), STAGES)
    assert not sampler.exact and not ThresholdVerifier(0.0).exact and "approximate" in repr(sampler)
    target = Network()
    result = sampler(target, noise(400), generator=torch.Generator().manual_seed(1), record=True)
    assert result.trajectory is not None and result.x0 is None
    x0 = []
    for step, states in enumerate(result.trajectory[:-1]):
        k = torch.full((400,), step)
        x0.append(sampler.process.x0(states, target(states, sampler.process.timesteps[k], None), k))
    seen = type(result)(**{**vars(result), "x0": torch.stack(x0)})
    assert check_exactness(sampler.process, seen).smallest < 1e-6


def test_a_chain_without_noise() -> None:
    """The published solvers have none; what is left is the order of steps."""
    noisy = process()
    quiet = replace(noisy, sigma=torch.zeros_like(noisy.sigma))
    result = AsdsvSampler(quiet, Network(), ThresholdVerifier(0.02), STAGES)(Network(), noise())
    torch.testing.assert_close(result.sample, SequentialSampler(quiet)(Network(), noise()).sample)


def test_presets_and_lengths() -> None:
    slow, fast = asdsv_slow(process(), Network()), asdsv_fast(process(), Network())
    assert slow.verifier == ThresholdVerifier(0.02) and not fast.verifier.compares and slow.schedule == DraftSchedule()
    lengths = DraftSchedule(alone=0.12, warm_up=0.2, short=3, long=9).lengths(50).tolist()
    assert lengths == [0] * 6 + [3] * 10 + [9] * 34
    assert DraftSchedule(alone=0.0).lengths(10).tolist()[0] == 0, "the target makes at least the first step"
    assert DraftSchedule(alone=1.0, warm_up=0.0).lengths(4).tolist() == [0] * 4


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ThresholdVerifier(-0.1), "distance of 0 or more"),
        (lambda: ThresholdVerifier(float("nan")), "distance of 0 or more"),
        (lambda: ThresholdVerifier(0.1, "linf"), "known: l1, l2"),
        (lambda: DraftSchedule(alone=0.8, warm_up=0.3), "shares of the chain"),
        (lambda: DraftSchedule(long=0), "at least 1 step"),
    ],
)
def test_bad_settings(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
