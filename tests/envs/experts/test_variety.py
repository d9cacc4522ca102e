from __future__ import annotations

import numpy as np
import pytest
from specpolicy_envs.experts.base import GraspFault, Randomization


def test_an_episode_lies_in_the_ranges() -> None:
    rng = np.random.default_rng(0)
    episodes = [Randomization(sigma=0.2, slowest=0.7, jitter=0.01, slip=0.3).draw(rng, ["a", "b"]) for _ in range(400)]
    paces = [episode.pace for episode in episodes]
    assert 0.7 <= min(paces) < 0.72 and 0.98 < max(paces) <= 1
    slips = [episode.slip(grasp) for episode in episodes for grasp in ("a", "b")]
    assert 0.2 < np.mean([slip is not None for slip in slips]) < 0.4
    assert set(slips) == {None, *GraspFault}
    offsets = np.array([episode.offset(rng) for episode in episodes])
    assert offsets.shape == (400, 3) and 0.009 < np.abs(offsets).max() <= 0.01


def test_draws_are_those_of_the_generator() -> None:
    first, second = (Randomization(slip=0.5).draw(np.random.default_rng(3), ["a", "b"]) for _ in range(2))
    assert first == second


def test_without_variety_nothing_differs() -> None:
    episode = Randomization(sigma=0, slowest=1, jitter=0, slip=0).draw(np.random.default_rng(0), ["a"])
    assert (episode.sigma, episode.pace, episode.slip("a")) == (0.0, 1.0, None)
    assert not episode.offset(np.random.default_rng(0)).any()


def test_a_slip_of_another_grasp_is_none_of_ours() -> None:
    episode = Randomization(slip=1.0).draw(np.random.default_rng(0), ["a"])
    assert isinstance(episode.slip("a"), GraspFault) and episode.slip("b") is None


@pytest.mark.parametrize("change", [{"sigma": -0.1}, {"slowest": 0.0}, {"slowest": 1.1}, {"jitter": -1.0}, {"slip": 2}])
def test_ranges_that_make_no_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Randomization(**change)
