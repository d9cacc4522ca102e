"""Image encoders of diffusion policies: residual networks, spatial softmax, resizing and cropping.

The conventions of robomimic, diffusion_policy and LeRobot are all here, since their weights are to give the same
features: how a crop is rounded, which maps are averaged, what follows the last linear layer. Weights keep torchvision's
names, so a state dict of its ResNets, or of a ResNet inside one of these packages, loads as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional

Size = tuple[int, int]
"""Height and width, pixels."""


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization by stored statistics, in training too; its parameters are not trained.

    Small batches of neighbouring frames are no sample to take statistics from, and a moving average of the weights
    would not average them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in evaluation mode."""
        super().train(False)
        return self


def group_norm(channels: int) -> nn.GroupNorm:
    """Make a group norm of 16 channels a group, as all three packages replace batch norms by; one group below 16."""
    return nn.GroupNorm(max(1, channels // 16), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {"group": group_norm, "frozen_batch": FrozenBatchNorm2d}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a residual path (He et al. 2016, figure 5, left)."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(channels_in, width, stride, norm)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d k l"]:
        """Apply the block."""
        hidden = functional.relu(self.bn1(self.conv1(x)))
        hidden = self.bn2(self.conv2(hidden))
        return functional.relu(hidden + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution around a residual path; the 3×3 has the stride, as in torchvision (ResNet v1.5)."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = norm(out)
        self.downsample = _shortcut(channels_in, out, stride, norm)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d k l"]:
        """Apply the block."""
        hidden = functional.relu(self.bn1(self.conv1(x)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        return functional.relu(hidden + (x if self.downsample is None else self.downsample(x)))


def _shortcut(channels_in: int, out: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Sequential | None:
    if stride == 1 and channels_in == out:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, out, 1, stride, bias=False), norm(out))


class ResNet(nn.Module):
    """A residual network without its classifier; feature maps out (He et al. 2016).

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        stages: blocks in each stage; every stage after the first halves the maps and doubles the channels.
        width: channels of the first stage (ResNet-18, 34 and 50: 64).
        norm: ``group`` or ``frozen_batch``.
        stem: ``standard``, a 7×7 convolution of stride 2 and max-pooling to a quarter of the size; ``patch``, one 8×8
            convolution of stride 4, at a third of the cost on a CPU.
        channels: channels of an image.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        stages: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        norm: str = "group",
        stem: str = "standard",
        channels: int = 3,
    ) -> None:
        super().__init__()
        make = NORMS[norm]
        if stem not in ("standard", "patch"):
            raise ValueError(f"stem={stem!r} of an image encoder; known: standard, patch")
        if stem == "standard":
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(channels, width, 8, stride=4, padding=2, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = make(width)
        self.depth = len(stages)
        widths = [width, *(width * 2**stage * block.expansion for stage in range(len(stages)))]
        for stage, (blocks, (channels_in, out)) in enumerate(zip(stages, pairwise(widths), strict=True)):
            inner = out // block.expansion
            first = block(channels_in, inner, 1 if stage == 0 else 2, make)
            rest = (block(out, inner, 1, make) for _ in range(blocks - 1))
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
        self.out_channels = widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def map_size(self, height: int, width: int) -> Size:
        """Compute the size of the feature maps of an image of this size."""
        sides = []
        for side in (height, width):
            side = side // 4 if isinstance(self.maxpool, nn.Identity) else _half(_half(side))
            for _ in range(self.depth - 1):
                side = _half(side)
            sides.append(side)
        return sides[0], sides[1]

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d k l"]:
        """Compute the feature maps of the last stage."""
        hidden = self.maxpool(functional.relu(self.bn1(self.conv1(image))))
        for stage in range(self.depth):
            hidden = self.get_submodule(f"layer{stage + 1}")(hidden)
        return hidden


def _half(side: int) -> int:
    """Size after a convolution of stride 2 that is padded by half its kernel."""
    return (side + 1) // 2


class ShallowConv(nn.Sequential):
    """robomimic's four convolutions, at half the image's size; keys ``0``, ``2``, ``4``, ``6``.

    Args:
        channels: channels of an image.
        out_channels: feature maps.
    """

    def __init__(self, channels: int = 3, out_channels: int = 32) -> None:
        super().__init__(
            nn.Conv2d(channels, 64, 7, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv2d(64, out_channels, 1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.out_channels = out_channels

    def map_size(self, height: int, width: int) -> Size:
        """Compute the size of the feature maps of an image of this size."""
        return _half(height), _half(width)


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...], int, str]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64, "standard"),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 64, "standard"),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64, "standard"),
    "narrow": (BasicBlock, (1, 2), 32, "patch"),
}
"""Block, blocks in each stage, channels of the first stage, and stem of each named backbone."""


def build_backbone(name: str, norm: str = "group", channels: int = 3, **arguments: Any) -> ResNet | ShallowConv:
    """Make a backbone, which has ``out_channels`` feature maps.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``; ``narrow`` (0.2 M parameters), which trains on a few CPU cores:
            a patch stem, one block of 32 channels and two of 64, maps of an eighth of the size; ``shallow``,
            robomimic's.
        norm: ``group`` or ``frozen_batch``; ``shallow`` has none.
        channels: channels of an image.
        **arguments: ``stages``, ``width`` and ``stem`` of :class:`ResNet`, or ``out_channels`` of :class:`ShallowConv`,
            where they differ from those of ``name``.

    Raises:
        ValueError: there is no such backbone or norm.
    """
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r} of an image encoder; known: {sorted(NORMS)}")
    if name == "shallow":
        return ShallowConv(channels, **arguments)
    if name not in RESNETS:
        raise ValueError(f"backbone {name!r} of an image encoder; known: {sorted([*RESNETS, 'shallow'])}")
    block, stages, width, stem = RESNETS[name]
    settings: dict[str, Any] = {"stages": stages, "width": width, "stem": stem, **arguments}
    return ResNet(block, norm=norm, channels=channels, **settings)


class SpatialSoftmax(nn.Module):
    """Where each map is active: the mean position under the softmax of its values (Levine et al. 2016, section 5.1).

    Positions run from −1 (left, top) to 1 (right, bottom), x before y for each keypoint.

    Args:
        channels: feature maps in.
        size: height and width of the maps.
        keypoints: maps that a 1×1 convolution ``nets`` makes of them first; None takes the maps as they are.
        temperature: divides the values before the softmax: robomimic has one, LeRobot none (1).
        learnable: train the temperature.
    """

    pos_grid: Tensor
    temperature: Tensor

    def __init__(
        self,
        channels: int,
        size: Size,
        keypoints: int | None = 32,
        temperature: float = 1.0,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        self.nets = nn.Identity() if keypoints is None else nn.Conv2d(channels, keypoints, 1)
        self.keypoints = channels if keypoints is None else keypoints
        y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
        self.register_buffer("pos_grid", torch.stack([x.flatten(), y.flatten()], dim=1), persistent=False)
        if learnable:
            self.temperature = nn.Parameter(torch.ones(1) * temperature)
        else:
            self.register_buffer("temperature", torch.ones(1) * temperature)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k 2"]:
        """Locate each map's activity."""
        values = self.nets(maps).flatten(2)
        attention = functional.softmax(values / self.temperature, dim=-1)
        positions: Tensor = attention @ self.pos_grid.to(attention.dtype)
        return positions


def crop_start(size: int, crop: int, rounding: str) -> int:
    """Compute where a centred crop begins.

    Where the border is odd, robomimic rounds down; torchvision (diffusion_policy, LeRobot) rounds to the nearest
    integer, halves to the even one.

    Args:
        size: of the image, pixels.
        crop: of the part, pixels, at most ``size``.
        rounding: ``down`` or ``nearest``.

    Returns:
        The first row, or column, of the crop.
    """
    return (size - crop) // 2 if rounding == "down" else round((size - crop) / 2.0)


def centre_crop(image: Shaped[Tensor, "*n c h w"], crop: Size, rounding: str = "nearest") -> Shaped[Tensor, "*n c k l"]:
    """Cut out the middle of images.

    Args:
        image: images, of any type.
        crop: height and width of the part.
        rounding: of odd borders; see :func:`crop_start`.

    Returns:
        A view of the parts.
    """
    top = crop_start(image.shape[-2], crop[0], rounding)
    left = crop_start(image.shape[-1], crop[1], rounding)
    return image[..., top : top + crop[0], left : left + crop[1]]


def random_crop(
    image: Shaped[Tensor, "n c h w"], crop: Size, generator: torch.Generator | None = None
) -> Shaped[Tensor, "n c k l"]:
    """Cut out a part of each image, each at its own place, drawn uniformly.

    Args:
        image: images, of any type.
        crop: height and width of the part.
        generator: of the places, on the CPU; None takes torch's own.

    Returns:
        The parts.
    """
    count, _, height, width = image.shape
    top = torch.randint(height - crop[0] + 1, (count, 1), generator=generator)
    left = torch.randint(width - crop[1] + 1, (count, 1), generator=generator)
    rows = (top + torch.arange(crop[0])).to(image.device)
    columns = (left + torch.arange(crop[1])).to(image.device)
    each = torch.arange(count, device=image.device)
    # Channels come last out of two index arrays with a slice between them.
    return image[each[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class ImageEncoder(nn.Module):
    """Bytes of one camera in, a feature vector out: resize, crop, scale, backbone, pool, linear layer and ReLU.

    Args:
        shape: channels, height and width of an image.
        backbone: name of a backbone; see :func:`build_backbone`.
        norm: ``group`` or ``frozen_batch``.
        pool: ``spatial_softmax``; ``average`` over all places.
        resize: height and width to resize to, bilinear; None leaves the size.
        antialias: average over what falls into a pixel when resizing to a smaller size, as LeRobot's torchvision does
            and diffusion_policy's does not.
        crop: height and width of the crop: centred in evaluation, at random in training. None: no crop.
        crop_rounding: of the centred crop; see :func:`crop_start`.
        scale, offset: what bytes, divided by 255, become: ``scale · x + offset``; one number, or one a channel.
        keypoints: of the spatial softmax. temperature: of the spatial softmax.
        features: length of the linear layer's output, with a ReLU behind it; None ends with the pool.
        **arguments: of the backbone.

    Raises:
        ValueError: the crop is larger than the image, or a name is none of those above.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        backbone: str = "resnet18",
        norm: str = "group",
        pool: str = "spatial_softmax",
        resize: Sequence[int] | None = None,
        antialias: bool = True,
        crop: Sequence[int] | None = None,
        crop_rounding: str = "nearest",
        scale: float | Sequence[float] = 1.0,
        offset: float | Sequence[float] = 0.0,
        keypoints: int | None = 32,
        temperature: float = 1.0,
        features: int | None = 64,
        **arguments: Any,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        size = (height, width) if resize is None else (resize[0], resize[1])
        if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            raise ValueError(f"crop={tuple(crop)} is larger than the image, {size}; choose a smaller crop")
        if crop_rounding not in ("down", "nearest"):
            raise ValueError(f"crop_rounding={crop_rounding!r} of an image encoder; known: down, nearest")
        self.shape = (channels, height, width)
        self.resize = None if resize is None else size
        self.crop = None if crop is None else (crop[0], crop[1])
        self.antialias, self.crop_rounding = antialias, crop_rounding
        self.register_buffer("scale", _per_channel(scale, channels), persistent=False)
        self.register_buffer("offset", _per_channel(offset, channels), persistent=False)
        self.backbone = build_backbone(backbone, norm, channels, **arguments)
        maps = self.backbone.out_channels
        self.pool: nn.Module
        if pool == "spatial_softmax":
            self.pool = SpatialSoftmax(maps, self.backbone.map_size(*(self.crop or size)), keypoints, temperature)
            pooled = 2 * self.pool.keypoints
        elif pool == "average":
            self.pool, pooled = nn.AdaptiveAvgPool2d(1), maps
        else:
            raise ValueError(f"pool={pool!r} of an image encoder; known: spatial_softmax, average")
        self.head = nn.Identity() if features is None else nn.Sequential(nn.Linear(pooled, features), nn.ReLU())
        self.out_features = pooled if features is None else features

    def prepare(
        self, image: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "n c k l"]:
        """Resize, crop and scale images to what the backbone sees.

        Args:
            image: bytes, or numbers in [0, 1].
            generator: of the places of the crops, which are random in training mode; see :func:`random_crop`.

        Raises:
            ValueError: the images have another shape than the encoder was built for.
        """
        if image.shape[1:] != self.shape:
            raise ValueError(f"images of shape {tuple(image.shape[1:])}; this encoder was built for {self.shape}")
        if self.crop is not None and self.resize is None:  # cutting bytes moves a quarter of what floats would
            image = self._cut(image, generator)
        pixels = image.float().div_(255) if image.dtype == torch.uint8 else image
        if self.resize is not None:
            pixels = functional.interpolate(
                pixels, self.resize, mode="bilinear", align_corners=False, antialias=self.antialias
            )
            pixels = self._cut(pixels, generator)
        return pixels * self.scale + self.offset

    def _cut(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.crop is None:
            return image
        if self.training:
            return random_crop(image, self.crop, generator)
        return centre_crop(image, self.crop, self.crop_rounding)

    def forward(
        self, image: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "n features"]:
        """Encode images.

        Args:
            image: as in :meth:`prepare`.
            generator: as in :meth:`prepare`.

        Returns:
            One feature vector for each image.
        """
        maps = self.backbone(self.prepare(image, generator))
        features: Tensor = self.head(self.pool(maps).flatten(1))
        return features


def _per_channel(value: float | Sequence[float], channels: int) -> Float[Tensor, "c 1 1"]:
    return torch.as_tensor(value, dtype=torch.float32).expand(channels).clone()[:, None, None]
