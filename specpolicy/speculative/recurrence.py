"""Linear recurrences over a window without a loop over its steps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def recur(
    decay: Float[Tensor, "n w r"], kick: Float[Tensor, "n w r"], start: Float[Tensor, "n r"]
) -> Float[Tensor, "n w1 r"]:
    """c_0 = start, c_{j+1} = decay_j c_j + kick_j, number by number.

    The affine maps of neighbouring steps are composed in pairs, then pairs of pairs (Hillis and Steele 1986): about
    log2(w) operations on whole windows, so that a device does not wait for w launches.
    """
    slope, offset = decay, torch.cat([kick[:, :1] + decay[:, :1] * start[:, None], kick[:, 1:]], dim=1)
    reach, window = 1, decay.shape[1]
    while reach < window:
        # Step j already covers ``reach`` maps ending at j; the map that ends at j − reach goes first.
        earlier = slice(None, window - reach)
        later = slice(reach, None)
        offset = torch.cat([offset[:, :reach], torch.addcmul(offset[:, later], slope[:, later], offset[:, earlier])], 1)
        slope = torch.cat([slope[:, :reach], slope[:, later] * slope[:, earlier]], dim=1)
        reach *= 2
    return torch.cat([start[:, None], offset], dim=1)
