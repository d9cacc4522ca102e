"""Train a forward model on demonstrations, and say how far ahead it can be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from specpolicy.datasets.demonstrations import Demonstration
from specpolicy.datasets.robomimic import DemonstrationError
from specpolicy.policies.forward_model import ForwardModel, save_forward_model
from specpolicy.policies.normalizer import MinMaxNormalizer
from specpolicy.training.loop import TrainingLoop, TrainingObjective, TrainingSettings
from specpolicy.utils.digests import FORWARD_MODEL

UNROLL = 4
"""Steps that are predicted from one another in training, so that errors of the first are met by the next."""

AHEAD = (1, 2, 4, 8)
"""Ticks ahead at which errors are reported."""

SETTINGS = TrainingSettings(
    steps=4000, batch_size=256, learning_rate=3e-3, weight_decay=1e-4, warmup_steps=200, bfloat16=False
)
"""How the forward models in this repository were trained."""

HELD_OUT_SHARE = 0.1
_RIDGE = 1e-3
_LARGEST_TARGET = 5.0  # of the affine fit, in units of scale: jumps are no dynamics


@dataclass(frozen=True)
class TransitionSet:
    """Stretches of episodes: two observations, then actions and what followed each.

    Attributes:
        observations: of all episodes, each with its first one doubled as a policy's window has it, shape ``(n, dim)``.
        actions: that moved the world, shape ``(n, action_dim)``; row i was played at observation i.
        starts: rows that a stretch of ``length`` actions can begin at: of the second of its two first observations.
        length: actions of a stretch.
    """

    observations: Float[Tensor, "n dim"]
    actions: Float[Tensor, "n action"]
    starts: Int[Tensor, " m"]
    length: int

    @classmethod
    def cut(cls, episodes: Sequence[Demonstration], length: int) -> TransitionSet:
        """Cut episodes into all stretches of a length.

        Args:
            episodes: their played actions are taken where these are not the demonstrated ones.
            length: actions of a stretch.

        Returns:
            The stretches.

        Raises:
            DemonstrationError: no episode is long enough.
        """
        observations, actions, starts, row = [], [], [], 0
        for episode in episodes:
            played = episode.actions if episode.executed is None else episode.executed
            observations += [episode.observations[:1], episode.observations]
            actions += [played[:1], played]
            starts.append(np.arange(row + 1, row + 1 + max(len(played) - length, 0)))
            row += len(played) + 1
        every = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        if not len(every):
            raise DemonstrationError(f"no demonstration is longer than {length} steps: there is nothing to predict")
        return cls(
            torch.from_numpy(np.concatenate(observations)),
            torch.from_numpy(np.concatenate(actions)),
            torch.from_numpy(every),
            length,
        )

    def stretches(
        self, which: Int[Tensor, " b"], length: int
    ) -> tuple[Float[Tensor, "b steps dim"], Float[Tensor, "b length action"]]:
        """Some stretches, or their beginnings.

        Args:
            which: indices into ``starts``.
            length: actions of each, at most ``self.length``.

        Returns:
            ``length + 2`` observations of each, the present one second, and its actions.
        """
        first = self.starts[which][:, None]
        return (
            self.observations[first + torch.arange(-1, length + 1)],
            self.actions[first + torch.arange(length)],
        )


class PredictionError(NamedTuple):
    """Mean absolute errors of an observation so many ticks ahead, over entries and 98 % of moments, in its units."""

    name: str
    ahead: int
    model: float
    last: float
    linear: float


def fit_forward_model(
    episodes: Sequence[Demonstration],
    observations: Mapping[str, int],
    folder: Path,
    settings: TrainingSettings,
    identity: Mapping[str, Any],
    width: int = 128,
) -> tuple[ForwardModel, list[PredictionError]]:
    """Train a forward model; a tenth of the episodes validates it.

    The affine part begins as a ridge regression and all is then trained on unrolled predictions. Entries that the model
    guesses worse than their last value on held-out episodes are switched off.

    Args:
        episodes: demonstrations, at least 2.
        observations: names and lengths of their vectors.
        folder: of the run, which can be interrupted and gone on with.
        settings: of the training.
        identity: tells the episodes from others, in plain types.
        width: of the hidden layers.

    Returns:
        The model with its weights rounded as they are stored, and its errors on held-out episodes.

    Raises:
        DemonstrationError: there are too few or too short episodes.
        OtherRunError, ResumeError, TrainingDiverged: see :meth:`TrainingLoop.run`.
    """
    if len(episodes) < 2:
        raise DemonstrationError(f"{len(episodes)} demonstrations; a forward model needs 2, one of them to validate on")
    count = max(1, round(HELD_OUT_SHARE * len(episodes)))
    train, valid = TransitionSet.cut(episodes[:-count], UNROLL), TransitionSet.cut(episodes[-count:], max(AHEAD))
    torch.manual_seed(settings.seed)
    model = ForwardModel(observations, train.actions.shape[1], width)
    _initialize(model, train)
    objective = TrainingObjective(
        examples=len(train.starts),
        loss=_UnrolledError(train),
        held_out=len(valid.starts),
        validation=_UnrolledError(valid),
        save=lambda network, out: save_forward_model(cast(ForwardModel, network), out / FORWARD_MODEL),
        identity={"forward_model": {"observations": dict(observations), "width": width, "unroll": UNROLL}, **identity},
    )
    trained = cast(ForwardModel, TrainingLoop(model, objective, settings, folder).run())
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.copy_(parameter.half().float())
    trained.requires_grad_(False)
    _choose_gate(trained, valid)
    return trained, prediction_errors(trained, valid)


def prediction_errors(model: ForwardModel, data: TransitionSet) -> list[PredictionError]:
    """Measure a model's errors beside those of the last value and of linear extrapolation.

    Args:
        model: to measure.
        data: stretches of at least ``max(AHEAD)`` actions.

    Returns:
        A row for each vector and number of ticks ahead. The largest 2 % of an entry's errors are left out, since
        observations may jump as no predictor can tell: a quaternion that changes its sign.
    """
    rows = []
    ends = np.cumsum(list(model.observations.values())).tolist()
    for ahead in AHEAD:
        errors = _absolute_errors(model, data, ahead)
        for name, length, end in zip(model.observations, model.observations.values(), ends, strict=True):
            typical = [float(_trimmed_mean(each[:, end - length : end]).mean()) for each in errors]
            rows.append(PredictionError(name, ahead, *typical))
    return rows


@torch.inference_mode()
def _absolute_errors(
    model: ForwardModel, data: TransitionSet, ahead: int
) -> tuple[Float[Tensor, "m dim"], Float[Tensor, "m dim"], Float[Tensor, "m dim"]]:
    """Of the model, the last value, and linear extrapolation, in the observation's units."""
    found, normalizer = [], model.observation_normalizer
    for which in torch.split(torch.arange(len(data.starts)), 2048):
        steps, actions = data.stretches(which, ahead)
        ahead_of = model.unroll(normalizer.normalize(steps[:, :2]), model.action_normalizer.normalize(actions))
        previous, present, true = steps[:, 0], steps[:, 1], steps[:, -1]
        guesses = (normalizer.unnormalize(ahead_of[:, -1]), present, present + ahead * (present - previous))
        found.append(torch.stack([(guess - true).abs() for guess in guesses]))
    model_error, last, linear = torch.cat(found, dim=1)
    return model_error, last, linear


class _UnrolledError:
    """Mean Huber loss of unrolled predictions, in units of each entry's typical change."""

    def __init__(self, data: TransitionSet) -> None:
        self.data = data

    def __call__(self, network: nn.Module, which: Tensor, generator: torch.Generator) -> Tensor:
        model = cast(ForwardModel, network)
        steps, actions = self.data.stretches(which, UNROLL)
        normalized = model.observation_normalizer.normalize(steps)
        predicted = model.unroll(normalized[:, :2], model.action_normalizer.normalize(actions))
        return nn.functional.huber_loss(predicted / model.scale, normalized[:, 2:] / model.scale)


@torch.no_grad()
def _initialize(model: ForwardModel, data: TransitionSet) -> None:
    """Fit the scales and the affine part; the network begins at zero."""
    model.observation_normalizer = MinMaxNormalizer.fit(data.observations)
    model.action_normalizer = MinMaxNormalizer.fit(data.actions)
    steps, actions = data.stretches(torch.arange(len(data.starts)), 1)
    normalized = model.observation_normalizer.normalize(steps)
    change = normalized[:, 2] - normalized[:, 1]
    model.scale.copy_(change.clamp(-0.2, 0.2).std(dim=0).clamp(min=1e-3))
    z = model.features(normalized[:, 0], normalized[:, 1], model.action_normalizer.normalize(actions[:, 0]))
    z = torch.cat([z, torch.ones(len(z), 1)], dim=1).double()
    target = (change / model.scale).clamp(-_LARGEST_TARGET, _LARGEST_TARGET).double()
    ridge = _RIDGE * len(z) * torch.eye(z.shape[1], dtype=z.dtype)
    weight = torch.linalg.solve(z.T @ z + ridge, z.T @ target).float()
    model.affine.weight.copy_(weight[:-1].T)
    model.affine.bias.copy_(weight[-1])
    last = cast(nn.Linear, model.network[-1])
    last.weight.zero_()
    last.bias.zero_()


def _choose_gate(model: ForwardModel, data: TransitionSet) -> None:
    """Switch off what the last value guesses better, so far ahead as predictions are unrolled in training."""
    error, last, _ = _absolute_errors(model, data, UNROLL)
    model.gate.copy_((_trimmed_mean(error) < _trimmed_mean(last)).float())


def _trimmed_mean(errors: Float[Tensor, "m dim"]) -> Float[Tensor, " dim"]:
    """Mean over all but the largest 2 % of each column."""
    return errors.sort(dim=0).values[: max(1, math.ceil(0.98 * len(errors)))].mean(dim=0)
