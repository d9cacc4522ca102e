"""Scaling of observations and actions to what networks work with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST_RANGE = 1e-4
"""Coordinates that vary by no more than this in the data are taken as constant."""


class _InFloat32(nn.Module):
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _InFloat32:
        """Move to a device, but stay in float32: in half precision positions would shift."""
        exact = {name: buffer for name, buffer in self.named_buffers()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype and moved.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, buffer.to(moved.device))
        return self


class MinMaxNormalizer(_InFloat32):
    """Affine map of each coordinate from its range in the data to [−1, 1].

    A coordinate that does not move in the data (range below 1e-4) is centred but not stretched, so that sensor noise
    is not blown up. Values outside the range map outside [−1, 1]; nothing is clipped.

    Args:
        low: smallest value of each coordinate in the data, shape ``(dim,)``.
        high: largest value of each coordinate, same shape.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Float[Tensor, " dim"], high: Float[Tensor, " dim"]) -> None:
        super().__init__()
        if low.shape != high.shape or low.ndim != 1:
            raise ValueError(f"low {tuple(low.shape)} and high {tuple(high.shape)} must be vectors of one length")
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    @classmethod
    def identity(cls, dim: int) -> MinMaxNormalizer:
        """Make the map that changes nothing, to be filled by ``load_state_dict``."""
        return cls(torch.full((dim,), -1.0), torch.ones(dim))

    @classmethod
    def fit(cls, data: Float[Tensor, "n dim"]) -> MinMaxNormalizer:
        """Read the range off ``data``."""
        return cls(data.amin(dim=0), data.amax(dim=0))

    def _centre_and_scale(self) -> tuple[Tensor, Tensor]:
        half = (self.high - self.low) / 2
        return (self.high + self.low) / 2, torch.where(half > SMALLEST_RANGE / 2, half, torch.ones_like(half))

    def normalize(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Map data units to [−1, 1]."""
        centre, scale = self._centre_and_scale()
        return (value - centre) / scale

    def unnormalize(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Map [−1, 1] to data units."""
        centre, scale = self._centre_and_scale()
        return value * scale + centre


class AffineNormalizer(_InFloat32):
    """Affine map of each coordinate, x′ = (x − center) / width + base, as other packages' normalizations are.

    Three vectors and not two: so float32 keeps the digits where a coordinate is far from zero or hardly moves.

    Args:
        center, width, base: of each coordinate, shape ``(dim,)``; no width is zero.
    """

    center: Tensor
    width: Tensor
    base: Tensor

    def __init__(
        self, center: Float[Tensor, " dim"], width: Float[Tensor, " dim"], base: Float[Tensor, " dim"]
    ) -> None:
        super().__init__()
        for name, vector in (("center", center), ("width", width), ("base", base)):
            self.register_buffer(name, vector.clone())

    @classmethod
    def identity(cls, dim: int) -> AffineNormalizer:
        """Make the map that changes nothing, to be filled by ``load_state_dict``."""
        return cls(torch.zeros(dim), torch.ones(dim), torch.zeros(dim))

    def normalize(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Map data units to the network's."""
        return (value - self.center) / self.width + self.base

    def unnormalize(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Map the network's units to those of the data."""
        return (value - self.base) * self.width + self.center


NORMALIZERS: dict[str, type[MinMaxNormalizer] | type[AffineNormalizer]] = {
    "min_max": MinMaxNormalizer,
    "affine": AffineNormalizer,
}
"""Normalizers by the name that a policy's configuration uses."""
