import numpy as np
import pytest

from specpolicy.evaluation.fidelity import find_modes, roughness, spread
from specpolicy.evaluation.statistics import StatisticsError


def chunks(n: int = 100, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 8, 2))


def test_spread_is_the_root_of_the_total_variance() -> None:
    assert spread(chunks(20_000)) == pytest.approx(4.0, rel=0.02)
    assert spread(np.ones((5, 8, 2))) == 0.0


def test_roughness_is_zero_at_constant_velocity_and_grows_with_noise() -> None:
    straight = np.broadcast_to(np.arange(8.0)[:, None] * [1.0, -2.0], (5, 8, 2))
    assert roughness(straight) == pytest.approx(0.0, abs=1e-12)
    assert roughness(straight + 0.1 * chunks(5)) > 0.1


def test_two_modes_are_found_with_their_shares() -> None:
    sample = chunks(120)
    sample[:30] += 3.0
    modes = find_modes(sample)
    assert modes.two
    assert modes.share(sample) == 0.25
    assert modes.share(chunks(50, seed=5)) == 0.0


def test_one_gaussian_is_rarely_taken_for_two_modes() -> None:
    assert sum(find_modes(chunks(60, seed), seed).two for seed in range(10)) <= 2


def test_a_constant_and_too_few() -> None:
    assert not find_modes(np.ones((10, 8, 2))).two
    with pytest.raises(StatisticsError, match="at least eight"):
        find_modes(chunks(5))
