"""Cameras of a policy: images checked by their shape, each frame encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from specpolicy.policies.networks.vision import ImageEncoder

LAYOUTS = ("HWC", "CHW")
"""Order of the axes of an image as the policy is given it: channels last (environments, robomimic) or first."""


@dataclass(frozen=True)
class CameraSpec:
    """One camera in a policy's configuration.

    Args:
        layout: ``HWC`` or ``CHW``.
        shape: channels, height and width, whatever the layout.
        encoder: further arguments of an :class:`~specpolicy.policies.networks.vision.ImageEncoder`.
    """

    layout: str
    shape: tuple[int, int, int]
    encoder: Mapping[str, Any]

    @classmethod
    def from_dict(cls, key: str, values: Mapping[str, Any]) -> CameraSpec:
        """Read one from the plain types of a configuration.

        Args:
            key: of the observation, for messages.
            values: ``{"layout": ..., "shape": [channels, height, width], **arguments}``; the layout is HWC by default.

        Raises:
            ValueError: the layout is unknown, or the shape is no shape of an image.
        """
        arguments = dict(values)
        layout, shape = arguments.pop("layout", "HWC"), arguments.pop("shape", None)
        if layout not in LAYOUTS:
            raise ValueError(f"cameras.{key}.layout is {layout!r}; known: {', '.join(LAYOUTS)}")
        if (
            not isinstance(shape, list | tuple)
            or len(shape) != 3
            or not all(isinstance(side, int) and side > 0 for side in shape)
        ):
            raise ValueError(f"cameras.{key}.shape is {shape!r}; expected [channels, height, width]")
        return cls(layout, (shape[0], shape[1], shape[2]), arguments)

    @property
    def raw_shape(self) -> tuple[int, int, int]:
        """Shape of one image in the camera's layout."""
        channels, height, width = self.shape
        return (channels, height, width) if self.layout == "CHW" else (height, width, channels)


class CameraEncoders(nn.ModuleList):
    """The image encoders of a policy, in the order of its cameras.

    In evaluation mode without gradients a frame that the last call encoded too is not encoded again, nor are equal
    frames of one call: those that a history shares with the one before it, those that fill the history at an episode's
    start, and the frame from which a pre-draft was made.

    Args:
        cameras: by observation key; see :meth:`CameraSpec.from_dict`.

    Attributes:
        encoded: how many frames have been encoded so far.
    """

    def __init__(self, cameras: Mapping[str, Mapping[str, Any]]) -> None:
        self.cameras = {key: CameraSpec.from_dict(key, values) for key, values in cameras.items()}
        self.encoded = 0
        self._known: dict[str, dict[bytes, Tensor]] = {}
        super().__init__(_build(key, camera) for key, camera in self.cameras.items())

    @property
    def features(self) -> dict[str, int]:
        """Length of each camera's feature vector."""
        return {key: encoder.out_features for key, encoder in self._named_encoders()}

    def encode(
        self, images: Mapping[str, NDArray[np.uint8]], device: torch.device
    ) -> dict[str, Float[Tensor, "b steps features"]]:
        """Encode the cameras' images for inference.

        Args:
            images: by camera, in its layout, shape ``(batch, steps, ...)``, bytes.
            device: of the weights.

        Returns:
            Features of each camera that is among the images.
        """
        return {
            key: self._encode_new(key, encoder, images[key], device)
            for key, encoder in self._named_encoders()
            if key in images
        }

    def forget(self) -> None:
        """Forget the frames of the last call."""
        self._known.clear()

    def encode_batch(
        self, key: str, images: UInt8[Tensor, "n a b c"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "n features"]:
        """Encode all images of a batch, with gradients in training.

        Args:
            key: of the camera.
            images: bytes, in the camera's layout.
            generator: of the random crops in training mode.
        """
        self.encoded += len(images)
        if self.cameras[key].layout == "HWC":
            images = images.permute(0, 3, 1, 2)
        features: Tensor = dict(self._named_encoders())[key](images, generator)
        return features

    def encode_frames(self, key: str, images: NDArray[np.uint8], device: torch.device) -> Float[Tensor, "n features"]:
        """Encode any number of images, 256 at a time.

        Args:
            key: of the camera.
            images: bytes, in its layout, shape ``(n, ...)``.
            device: of the weights.
        """
        parts = torch.split(torch.from_numpy(images), 256)
        return torch.cat([self.encode_batch(key, part.to(device)) for part in parts])

    def _encode_new(
        self, key: str, encoder: ImageEncoder, images: NDArray[np.uint8], device: torch.device
    ) -> Float[Tensor, "b steps features"]:
        frames = images.reshape(-1, *images.shape[2:])
        if self.training or torch.is_grad_enabled():
            features = self.encode_batch(key, torch.from_numpy(np.ascontiguousarray(frames)).to(device))
            return features.view(*images.shape[:2], -1)
        digests = [blake2b(frame.tobytes(), digest_size=16).digest() for frame in frames]
        last = self._known.get(key, {})
        known = {digest: last[digest] for digest in digests if digest in last}
        new = {digest: frame for digest, frame in zip(digests, frames, strict=True) if digest not in known}
        if new:
            known |= dict(zip(new, self.encode_frames(key, np.stack(list(new.values())), device), strict=True))
        self._known[key] = known
        return torch.stack([known[digest] for digest in digests]).view(*images.shape[:2], -1)

    def _named_encoders(self) -> Iterator[tuple[str, ImageEncoder]]:
        for key, encoder in zip(self.cameras, self, strict=True):
            assert isinstance(encoder, ImageEncoder)
            yield key, encoder

    # What was encoded is forgotten whenever the weights may have changed.

    def train(self, mode: bool = True) -> CameraEncoders:
        """Switch between training and evaluation."""
        self.forget()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CameraEncoders:
        self.forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*arguments, **named)


def _build(key: str, camera: CameraSpec) -> ImageEncoder:
    try:
        return ImageEncoder(camera.shape, **camera.encoder)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cameras.{key}: {error}") from error
