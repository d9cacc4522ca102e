import numpy as np
import pytest
from scipy import stats

from specpolicy.evaluation.statistics import StatisticsError
from specpolicy.evaluation.two_sample import energy_distance, equality_p_value


def normal(n: int, d: int = 6, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=(n, d))


def test_distance_of_large_one_dimensional_samples_is_scipys() -> None:
    x, y = normal(1500, 1), 0.7 + normal(1200, 1, seed=1, scale=1.4)
    ours, scipys = energy_distance(x, y).distance, stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    assert ours == pytest.approx(scipys, rel=0.02)


def test_distance_is_unbiased_for_one_distribution() -> None:
    distances = [energy_distance(normal(40, seed=2 * i), normal(40, seed=2 * i + 1)).distance for i in range(200)]
    assert abs(np.mean(distances)) < 4 * np.std(distances) / np.sqrt(len(distances))
    assert min(distances) < 0 < max(distances)


def test_coefficient_of_two_constants_is_one() -> None:
    assert energy_distance(np.zeros((5, 3)), np.ones((4, 3))).coefficient == 1.0
    assert energy_distance(np.ones((5, 3)), np.ones((4, 3))) == (0.0, 0.0)


def test_a_narrower_distribution_is_found_and_the_same_one_is_not() -> None:
    same = [(normal(80, seed=i), normal(80, seed=100 + i)) for i in range(5)]
    narrower = [(first, 0.8 * second) for first, second in same]
    assert equality_p_value(same, 200) > 0.01
    assert equality_p_value(narrower, 200) == pytest.approx(1 / 201)


def test_rows_are_exchanged_within_a_pair_only() -> None:
    """Pairs that lie far apart from each other are still each of one distribution."""
    pairs = [(50 * i + normal(60, seed=i), 50 * i + normal(60, seed=30 + i)) for i in range(4)]
    assert equality_p_value(pairs, 200) > 0.01


@pytest.mark.parametrize(
    ("first", "second"),
    [(np.zeros((1, 2)), np.zeros((3, 2))), (np.zeros((3, 2)), np.zeros((3, 1))), (np.zeros(3), np.zeros(3))],
)
def test_wrong_shapes_are_named(first: np.ndarray, second: np.ndarray) -> None:
    with pytest.raises(StatisticsError, match=r"shapes \(n, d\)"):
        energy_distance(first, second)


def test_nan_and_nothing_are_refused() -> None:
    with pytest.raises(StatisticsError, match="NaN"):
        energy_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
    with pytest.raises(StatisticsError, match="no pairs"):
        equality_p_value([])
