import numpy as np
import pytest
from scipy import stats

from specpolicy.evaluation.statistics import StatisticsError, mean_interval


def test_it_is_scipys_t_interval() -> None:
    values = np.random.default_rng(0).uniform(size=30)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    estimate = mean_interval(values, 0.9)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate[1:] == pytest.approx(tuple(expected))


def test_one_value_and_nan_are_refused() -> None:
    with pytest.raises(StatisticsError, match="one value has no interval"):
        mean_interval([0.5])
    with pytest.raises(StatisticsError, match="NaN"):
        mean_interval([0.5, float("nan")])
