"""Planned windows against optima that are known, and against every other choice."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch

from specpolicy.tuning.acceptance import AcceptanceProfile
from specpolicy.tuning.cost_model import RoundCost
from specpolicy.tuning.windows import best_constant, choose_windows, expected_time, plan_windows


def profile_of(kept: Callable[[int, int], list[int]], steps: int, longest: int) -> AcceptanceProfile:
    """``kept(k, w)``: equally likely numbers of steps kept from position k by a window of w."""
    start, accepted, chain = [], [], []
    for k in range(steps):
        by_window = [kept(k, window) for window in range(1, longest + 1)]
        for number, each in enumerate(zip(*by_window, strict=True)):
            start.append(k)
            accepted.append(list(each))
            chain.append(number)
    reach = torch.tensor([steps - 1 - k for k in range(steps)])
    return AcceptanceProfile(steps, reach, torch.tensor(start), torch.tensor(accepted), torch.tensor(chain))


def cliff(steps: int, edge: int, longest: int, rounds: int = 30) -> AcceptanceProfile:
    """Drafts are kept as far as ``edge`` and never from there on."""
    return profile_of(lambda k, w: [min(w, max(0, edge - k), steps - 1 - k)] * rounds, steps, longest)


def test_a_cliff_is_drafted_up_to_and_not_beyond() -> None:
    plan = plan_windows(cliff(steps=40, edge=25, longest=39), lambda k, w: 1 + 0.1 * w)
    assert plan.windows[0] == 25 and plan.windows[5] == 20
    assert plan.windows[26:39] == [1] * 13, "beyond it a longer draft costs and gives nothing"
    # One round to the edge and its step, then 14 steps one by one, the last of which has no noise to draft.
    assert plan.expected == pytest.approx(1 + 2.5 + 13 * 1.1 + 1)


def test_where_rows_cost_nothing_everything_is_drafted() -> None:
    plan = plan_windows(cliff(30, 29, longest=29), lambda k, w: 1.0)
    assert plan.windows[0] == 29 and plan.expected == 1


def test_where_rows_cost_as_much_as_passes_next_to_nothing_is_drafted() -> None:
    plan = plan_windows(cliff(30, 4, longest=29), lambda k, w: float(w + 1))
    assert plan.windows[10:29] == [1] * 19


def random_profile(steps: int, longest: int, seed: int) -> AcceptanceProfile:
    generator = torch.Generator().manual_seed(seed)
    hope = torch.cat([torch.rand(steps, generator=generator), torch.zeros(longest)])

    def kept(k: int, window: int) -> list[int]:
        draws = torch.rand(40, window, generator=torch.Generator().manual_seed(100 * k + seed))
        run = (draws < hope[k : k + window]).cumprod(1).sum(1)
        return [min(int(each), steps - 1 - k) for each in run]

    return profile_of(kept, steps, longest)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_windows_are_better(seed: int) -> None:
    profile = random_profile(steps=5, longest=3, seed=seed)
    cost = RoundCost([1, 2, 4], [1.0, 1.2, 2.5], overhead_ms=0.3)
    plan = plan_windows(profile, cost)
    every = [expected_time(profile, cost, windows) for windows in product((1, 2, 3), repeat=5)]
    assert plan.expected == pytest.approx(min(every)) and max(every) > 1.05 * min(every)
    assert expected_time(profile, cost, plan.windows) == pytest.approx(plan.expected)


def test_the_best_constant_is_the_best_of_all_constants_and_no_better_than_the_plan() -> None:
    profile, cost = cliff(40, 25, longest=39), RoundCost([1, 40], [1.0, 5.0])
    window, time = best_constant(profile, cost)
    assert time == min(expected_time(profile, cost, each) for each in range(1, 40))
    assert time == expected_time(profile, cost, window) > 1.05 * plan_windows(profile, cost).expected


def test_the_expected_time_is_what_a_simulation_takes() -> None:
    profile, cost = random_profile(12, 6, seed=9), RoundCost([1, 7], [1.0, 3.0])
    windows = [1 + k % 6 for k in range(12)]
    generator, taken = torch.Generator().manual_seed(0), []
    for _ in range(4000):
        k, spent = 0, 0.0
        while k < 12:
            reach = int(profile.reach[k])
            window = min(windows[k], max(1, reach))
            spent += cost(k, min(window, reach))
            row = int(torch.multinomial(profile.weights[k], 1, generator=generator))
            k += min(int(profile.accepted[row, window - 1]), reach) + 1
        taken.append(spent)
    assert sum(taken) / len(taken) == pytest.approx(expected_time(profile, cost, windows), rel=0.02)


def test_positions_without_rounds_borrow_from_their_neighbours() -> None:
    start = torch.tensor([0] * 40 + [10] * 40)
    accepted = torch.tensor([[5]] * 40 + [[1]] * 40)
    profile = AcceptanceProfile(12, torch.arange(11, -1, -1), start, accepted, torch.arange(80))
    kept = [float((profile.weights[k] * accepted[:, 0]).sum()) for k in range(12)]
    assert kept[0] == pytest.approx(5) and kept[10] == pytest.approx(1)
    assert all(a > b - 1e-6 for a, b in pairwise(kept)) and 1 < kept[5] < 5
    assert all(float(profile.weights[k].sum()) == pytest.approx(1) for k in range(12))


def test_an_empty_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="record at least one round"):
        AcceptanceProfile(
            3, torch.ones(3).long(), torch.empty(0).long(), torch.empty(0, 2).long(), torch.empty(0).long()
        )


def noisy(seed: int, hope: list[float], rounds: int, longest: int) -> AcceptanceProfile:
    """A few rounds from each position, each step kept with the chance of its position."""
    generator, steps = torch.Generator().manual_seed(seed), len(hope)
    chances = torch.cat([torch.tensor(hope), torch.zeros(longest)])
    start = torch.arange(steps).repeat_interleave(rounds)
    ahead = chances[start[:, None] + torch.arange(longest)]
    run = (torch.rand(len(start), longest, generator=generator) < ahead).long().cumprod(1).sum(1)
    accepted = torch.minimum(run[:, None], torch.arange(1, longest + 1))
    reach = torch.arange(steps - 1, -1, -1)
    return AcceptanceProfile(
        steps, reach, start, torch.minimum(accepted, reach[start, None]), torch.arange(rounds).repeat(steps)
    )


def test_a_real_difference_along_the_chain_is_planned_for() -> None:
    cost, hope = RoundCost([1, 31], [1.0, 4.0]), [0.97] * 30 + [0.3] * 30
    choice = choose_windows(noisy(0, hope, rounds=12, longest=30), cost)
    assert choice.neighbours is not None and choice.expected < 0.95 * choice.constant_expected
    assert min(choice.windows[5:20]) > max(choice.windows[40:55])
    truth = noisy(1, hope, rounds=300, longest=30)
    assert expected_time(truth, cost, choice.windows) < 0.95 * expected_time(truth, cost, choice.constant)
    assert expected_time(truth, cost, choice.windows) == pytest.approx(choice.expected, rel=0.1)


def test_luck_is_not_planned_for() -> None:
    """Where all positions are alike the narrowest plan believes what it has picked, and the choice does not."""
    cost, profile = RoundCost([1, 31], [1.0, 4.0]), noisy(2, [0.9] * 60, rounds=4, longest=30)
    believed = plan_windows(profile, cost).expected
    choice, truth = choose_windows(profile, cost), noisy(3, [0.9] * 60, rounds=300, longest=30)
    assert choice.expected > believed and choice.neighbours != min(choice.tried)
    narrow = expected_time(truth, cost, plan_windows(profile, cost).windows)
    assert expected_time(truth, cost, choice.windows) <= narrow


def test_one_chain_cannot_judge_itself() -> None:
    profile = cliff(10, 5, longest=9, rounds=1)
    with pytest.raises(ValueError, match="profile of"):
        choose_windows(profile, lambda k, w: 1.0)
