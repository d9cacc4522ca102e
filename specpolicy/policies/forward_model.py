"""A learned forward model: the observation after the next actions, for the time that a policy takes to compute.

The next observation is the present one plus what an affine map and a small network make of the present observation, its
last change and the action:

    ô(t+1) = o(t) + gate · scale · (A z + MLP(z)),    z = (o(t), (o(t) − o(t−1)) / scale, a(t)),

all in units normalized to [−1, 1]; further steps follow by unrolling. A controller lags behind its commands, and the
last change tells what is still to come of earlier ones. Where the model guesses an entry worse than its last value
does, as with flags that flip, the gate is 0 and the entry stays.

It is stored as ``forward_model.safetensors`` beside a policy's checkpoint and depends on the policy only by what that
observes: another policy of the same observations and actions may use a copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from specpolicy.policies.checkpoint import companion, is_own, read_config, weights_digest
from specpolicy.policies.normalizer import MinMaxNormalizer
from specpolicy.policies.observations import HistoryWindow
from specpolicy.utils.digests import FORWARD_MODEL, file_digest, note_input
from specpolicy.utils.errors import one_line
from specpolicy.utils.files import DAMAGED, atomic_path

FORMAT = 1
_HEADER, _DIGEST = "forward_model", "sha256"
_LARGEST_CHANGE = 5.0
"""In units of ``scale``; what jumps farther, as a quaternion that changes its sign does, tells nothing of velocity."""


class ForwardModelError(RuntimeError):
    """A forward model is missing, damaged, or of other observations or actions."""


class ForwardModel(nn.Module):
    """Predicts observations from actions; a :class:`specpolicy.control.Predictor`.

    Args:
        observations: names and lengths of the vectors that are predicted, in the order in which they are joined.
        action_dim: coordinates of an action, environment units.
        width: of the network's two hidden layers.

    Attributes:
        scale: typical change of each entry in a step, normalized, shape ``(dim,)``.
        gate: 1 where an entry is predicted, 0 where it stays, shape ``(dim,)``.
    """

    scale: Tensor
    gate: Tensor

    def __init__(self, observations: Mapping[str, int], action_dim: int, width: int = 128) -> None:
        super().__init__()
        self.observations, self.action_dim, self.width = dict(observations), action_dim, width
        dim = sum(self.observations.values())
        self.observation_normalizer = MinMaxNormalizer.identity(dim)
        self.action_normalizer = MinMaxNormalizer.identity(action_dim)
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("gate", torch.ones(dim))
        inputs = 2 * dim + action_dim
        self.affine = nn.Linear(inputs, dim)
        self.network = nn.Sequential(
            nn.Linear(inputs, width), nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, dim)
        )

    def features(
        self, previous: Float[Tensor, "*b dim"], present: Float[Tensor, "*b dim"], action: Float[Tensor, "*b action"]
    ) -> Float[Tensor, "*b inputs"]:
        """Join what the next observation follows from.

        Args:
            previous: normalized observation one step ago.
            present: normalized observation.
            action: normalized, of the present step.

        Returns:
            The network's input z.
        """
        change = ((present - previous) / self.scale).clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE)
        return torch.cat([present, change, action], dim=-1)

    def unroll(
        self, steps: Float[Tensor, "*b 2 dim"], actions: Float[Tensor, "*b n action"]
    ) -> Float[Tensor, "*b n dim"]:
        """Predict one observation for each action.

        Args:
            steps: the last two observations, normalized, the present one last.
            actions: normalized, the present step's first.

        Returns:
            The observations after each of them, normalized.
        """
        previous, present = steps[..., 0, :], steps[..., 1, :]
        following = []
        for action in actions.unbind(dim=-2):
            z = self.features(previous, present, action)
            change = self.gate * self.scale * (self.affine(z) + self.network(z))
            previous, present = present, present + change
            following.append(present)
        return torch.stack(following, dim=-2) if following else steps[..., :0, :]

    @torch.inference_mode()
    def forward(self, window: HistoryWindow, ticks: int, actions: NDArray[np.float64]) -> HistoryWindow:
        """Predict a window; see :class:`specpolicy.control.Predictor`.

        Args:
            window: ``{name: (n_obs_steps, length)}``; names that are not predicted stay as they are.
            ticks: how far ahead.
            actions: until then, shape ``(n, action_dim)``; after the last one nothing is taken to change.

        Returns:
            The window ``ticks`` from now.

        Raises:
            ForwardModelError: the window lacks a vector, or vectors or actions have other shapes.
        """
        joined = torch.from_numpy(self._joined(window))
        moves = np.asarray(actions, np.float32)[:ticks]
        if len(moves) and moves.shape[1:] != (self.action_dim,):
            raise ForwardModelError(
                f"actions of shape {moves.shape}; this forward model expects (n, {self.action_dim})"
            )
        played = torch.from_numpy(moves.reshape(-1, self.action_dim))
        last_two = joined[[max(len(joined) - 2, 0), len(joined) - 1]]
        ahead = self.unroll(
            self.observation_normalizer.normalize(last_two), self.action_normalizer.normalize(played)
        )  # fmt: skip
        steps = torch.cat([joined, self.observation_normalizer.unnormalize(ahead)])
        steps = torch.cat([steps, steps[-1:].expand(ticks - len(moves), -1)])[-len(joined) :]
        parts = np.split(steps.numpy(), np.cumsum(list(self.observations.values()))[:-1], axis=1)
        predicted = {
            name: part.reshape(window[name].shape).astype(window[name].dtype)
            for name, part in zip(self.observations, parts, strict=True)
        }
        return {**window, **predicted}

    def _joined(self, window: HistoryWindow) -> NDArray[np.float32]:
        """The vectors of a window side by side, shape ``(n_obs_steps, dim)``."""
        for name, length in self.observations.items():
            if name not in window or window[name].reshape(len(window[name]), -1).shape[1] != length:
                found = f"has shape {window[name].shape}" if name in window else "is missing"
                raise ForwardModelError(f"observation {name!r} {found}; this forward model expects {self.observations}")
        vectors = [np.asarray(window[name], np.float32).reshape(len(window[name]), -1) for name in self.observations]
        return np.concatenate(vectors, axis=1)


def forward_model_path(checkpoint: str | Path) -> Path:
    """Locate the forward model of a checkpoint.

    Args:
        checkpoint: of the policy.

    Returns:
        The path, whether there is a file or not.
    """
    return companion(checkpoint) / FORWARD_MODEL


def save_forward_model(model: ForwardModel, path: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a forward model, at once or not at all; the weights in half precision.

    Args:
        model: to write.
        path: the safetensors file.
        about: where it comes from, as plain JSON types.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {name: tensors[name].half() for name in dict(model.named_parameters())}
    header = {
        "format": FORMAT,
        "observations": model.observations,
        "action_dim": model.action_dim,
        "width": model.width,
        "about": dict(about or {}),
    }
    content = save(tensors, {_HEADER: json.dumps(header), _DIGEST: weights_digest(tensors)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_forward_model(checkpoint: str | Path) -> ForwardModel:
    """Read the forward model of a policy.

    Args:
        checkpoint: of the policy.

    Returns:
        The model, in float32 on the CPU, in evaluation mode.

    Raises:
        ForwardModelError: there is none, it is damaged, or it is of other observations or actions than the policy. The
            message names the command that makes one.
    """
    path = forward_model_path(checkpoint)
    command = f"`specpolicy calibrate checkpoint={checkpoint} forward_model=true dataset=...`"
    if not path.is_file():
        raise ForwardModelError(f"{checkpoint} has no forward model; run {command}, or choose predictor=linear")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            header = json.loads(metadata[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this version reads {FORMAT}")
        if metadata[_DIGEST] != weights_digest(tensors):
            raise ValueError("its weights are not those of its digest")
        if odd := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            raise ValueError(f"{odd[0]} holds NaN or infinity")
        with torch.device("meta"):
            model = ForwardModel(header["observations"], header["action_dim"], header["width"])
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    except (SafetensorError, RuntimeError, *DAMAGED) as error:
        raise ForwardModelError(f"{path} cannot be read ({one_line(error, 300)}); run {command} again") from error
    if is_own(Path(checkpoint)):
        config = read_config(checkpoint)
        if (dict(config.observations), config.env_action_dim) != (model.observations, model.action_dim):
            raise ForwardModelError(
                f"{path} predicts {model.observations} from {model.action_dim} action coordinates; the policy observes "
                f"{dict(config.observations)} and has {config.env_action_dim}: run {command} again"
            )
    note_input(path.name, file_digest(path))
    return model.eval().requires_grad_(False)
