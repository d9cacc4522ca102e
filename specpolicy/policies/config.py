"""Everything needed to rebuild a policy before its weights are loaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from specpolicy.policies.networks import NETWORKS
from specpolicy.policies.normalizer import NORMALIZERS
from specpolicy.policies.rotations import check_rotations
from specpolicy.utils.checks import check_choice, check_flag, check_integer, shown


@dataclass(frozen=True)
class PolicyConfig:
    """The shape of a policy.

    Args:
        task: name of the task it was trained on.
        observations: length of each observation part in the network's condition, in order; of a camera, its features.
        action_dim: coordinates of one action.
        n_obs_steps: observation steps seen, the present one last (Diffusion Policy: 2).
        horizon: actions in one predicted chunk; the first belongs to the oldest observation step (16).
        n_action_steps: actions played before the next chunk is asked for, from the present step on (8).
        network: ``{"name": ..., **arguments}`` of a network in :data:`specpolicy.policies.networks.NETWORKS`.
        scheduler: configuration of the diffusers scheduler: a ``DDPMScheduler`` as used in training, or where
            ``_class_name`` says so a ``DDIMScheduler`` of the same betas, which the policy's own package plays.
        cameras: which of the observations are images, and how each is encoded; see
            :meth:`~specpolicy.policies.cameras.CameraSpec.from_dict`.
        max_delay: longest run of actions under way that the policy continues, in steps; see
            :mod:`~specpolicy.policies.prefix`. 0: it was not trained for that.
        first_action: position in the chunk of the first action played; None for that of the present step.
        num_inference_steps: steps of the scheduler that are played if nothing else is asked for; None for all.
        normalization: ``min_max``, or ``affine`` with any scale and offset.
        inpainting: observations are no condition of the network but the last coordinates of the trajectory, known in
            its first ``n_obs_steps`` steps.
        rotations: six-dimensional rotations in actions, and what they are turned into; see
            :func:`~specpolicy.policies.rotations.convert_rotations`.
        source: of a policy that another package trained: what was found in its checkpoint, assumed, and deliberately
            done otherwise; see :meth:`~specpolicy.policies.DiffusionPolicy.report`.
    """

    task: str
    observations: dict[str, int]
    action_dim: int
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    network: dict[str, Any] = field(default_factory=lambda: {"name": "unet1d"})
    scheduler: dict[str, Any] = field(default_factory=dict)
    cameras: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_delay: int = 0
    first_action: int | None = None
    num_inference_steps: int | None = None
    normalization: str = "min_max"
    inpainting: bool = False
    rotations: list[dict[str, Any]] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(vars(self))
        for name in (*_MOST, "max_delay"):  # numpy's integers become Python's
            object.__setattr__(self, name, int(getattr(self, name)))
        first = self.first_executed
        if first + self.n_action_steps > self.horizon:
            raise ValueError(
                f"n_action_steps={self.n_action_steps} from step {first} on do not fit into "
                f"horizon={self.horizon}; at most {self.horizon - first} can be executed"
            )

        if unknown := [key for key in self.cameras if key not in self.observations]:
            raise ValueError(f"cameras {unknown} are none of the observations {list(self.observations)}")
        if self.inpainting and (self.cameras or self.n_obs_steps > self.horizon):
            raise ValueError("inpainting: observations must be vectors, of no more steps than the chunk has")
        check_rotations(self.rotations, self.action_dim)
        if first + self.max_delay >= self.horizon:
            raise ValueError(
                f"max_delay={self.max_delay} from step {first} on leaves nothing to predict of horizon={self.horizon}; "
                f"at most {self.horizon - first - 1}"
            )
        if self.max_delay and (self.inpainting or self.rotations):
            raise ValueError("max_delay: not with inpainting or rotations, whose actions are not those that are played")

    @property
    def first_executed(self) -> int:
        """Position in the chunk of the first action that is played."""
        return self.n_obs_steps - 1 if self.first_action is None else self.first_action

    @property
    def env_action_dim(self) -> int:
        """Coordinates of an action that is played: fewer than ``action_dim`` where rotations are converted."""
        return self.action_dim - 3 * len(self.rotations)

    @property
    def trajectory_dim(self) -> int:
        """Coordinates of one step of what is sampled: an action, and with inpainting an observation."""
        return self.action_dim + (sum(self.observations.values()) if self.inpainting else 0)

    def to_dict(self) -> dict[str, Any]:
        """Write the configuration as plain JSON types; without defaults, from ``cameras`` on."""
        values, names = asdict(self), [f.name for f in fields(self)]
        for f in fields(self)[names.index("cameras") :]:
            plain = f.default if f.default_factory is MISSING else f.default_factory()
            if values[f.name] == plain:
                del values[f.name]
        return values

    def check_interchangeable(self, other: PolicyConfig, role: str) -> None:
        """Check that the networks of both can be asked the same and answer in the same terms.

        Features of two encoders are not the same: policies with cameras are not interchangeable.

        Args:
            other: configuration of the other policy.
            role: what the other policy is to be, for the message: ``teacher``, ``draft network``.

        Raises:
            ValueError: they differ; the message says in what.
        """
        for name in ("observations", "n_obs_steps", "action_dim", "horizon", "scheduler", "inpainting", "max_delay"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                raise ValueError(f"{name}: the {role}'s is {others}, the policy's {mine}; both must have the same")
        if self.cameras or other.cameras:
            raise ValueError(
                f"cameras: the {role} and the policy encode images each in its own way, so that neither network can be "
                f"asked with the other's features; take a {role} and a policy without cameras"
            )

    @classmethod
    def for_task(cls, task: dict[str, Any], policy: dict[str, Any]) -> PolicyConfig:
        """Put together what a task observes and what a policy makes of it.

        Args:
            task: ``name``, ``action_dim`` and ``observations``: of a vector its length, of a camera ``[height, width,
                channels]``.
            policy: the other fields; for cameras also ``encoder``, arguments of an
                :class:`~specpolicy.policies.networks.vision.ImageEncoder`, for each of them.

        Raises:
            ValueError: the task has cameras and the policy no encoder, or the encoder cannot be built.
        """
        from specpolicy.policies.cameras import CameraEncoders

        rest = dict(policy)
        encoder = rest.pop("encoder", None)
        shapes = {key: value for key, value in task["observations"].items() if not isinstance(value, int)}
        if shapes and encoder is None:
            raise ValueError(
                f"task {task['name']!r} has cameras {list(shapes)}, the policy no encoder; take policy=image"
            )
        cameras = {
            key: {"layout": "HWC", "shape": [channels, height, width], **encoder}
            for key, (height, width, channels) in shapes.items()
        }
        lengths = CameraEncoders(cameras).features
        observations = {key: lengths.get(key, value) for key, value in task["observations"].items()}
        return cls(task["name"], observations, task["action_dim"], cameras=cameras, **rest)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolicyConfig:
        """Read what :meth:`to_dict` wrote.

        Args:
            values: plain JSON types.

        Raises:
            ValueError: there are unknown or missing keys, or a value is of another type or out of its range; the
                message names the key.
        """
        if not isinstance(values, dict):
            raise ValueError(f"policy config: {shown(values)}; expected a JSON object")
        known = {f.name for f in fields(cls)}
        unknown, missing = set(values) - known, {"task", "observations", "action_dim"} - set(values)
        if unknown or missing:
            raise ValueError(f"policy config: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
        _check(values)
        return cls(**values)


_MOST = {"action_dim": 10_000, "n_obs_steps": 1_000, "horizon": 10_000, "n_action_steps": 10_000}
_MOST_ARGUMENT = 1_000_000
_SHAPES = ("action_dim", "cond_dim", "horizon", "prefix_dim")


def _check(values: Mapping[str, Any]) -> None:
    """Check types and ranges of the fields, before anything is computed from them."""
    if not isinstance(values["task"], str) or not values["task"]:
        raise ValueError(f"task={shown(values['task'])}: expected a name")
    for name, most in _MOST.items():
        if name in values:
            check_integer(name, values[name], 1, most)
    for name in ("observations", "network", "scheduler", "cameras", "source"):
        group = values.get(name, {})
        if not isinstance(group, dict) or not all(isinstance(key, str) for key in group):
            raise ValueError(f"{name}={shown(group)}: expected names and their values")
    if not values["observations"]:
        raise ValueError("observations={}: expected at least one key and its length")
    for key, length in values["observations"].items():
        check_integer(f"observations.{key}", length, 1, 100_000)
    for key, camera in values.get("cameras", {}).items():
        if not isinstance(camera, dict):
            raise ValueError(f"cameras.{key}={shown(camera)}: expected names and their values")
        for name, value in camera.items():
            _check_argument(f"cameras.{key}.{name}", value)
    if "network" in values:
        _check_network(values["network"])
    for name, (least, most) in {"first_action": (0, 10_000), "num_inference_steps": (1, 100_000)}.items():
        if values.get(name) is not None:
            check_integer(name, values[name], least, most)
    check_choice("normalization", values.get("normalization", "min_max"), sorted(NORMALIZERS))
    check_integer("max_delay", values.get("max_delay", 0), 0, 10_000)
    check_flag("inpainting", values.get("inpainting", False))
    rotations = values.get("rotations", [])
    if not isinstance(rotations, list) or not all(isinstance(each, dict) for each in rotations):
        raise ValueError(f"rotations={shown(rotations)}: expected a list of rotations")
    for name, value in values.get("scheduler", {}).items():
        _check_argument(f"scheduler.{name}", value, length=100_000)


def _check_network(network: dict[str, Any]) -> None:
    name = check_choice("network.name", network.get("name"), sorted(NETWORKS))
    known = [each for each in inspect.signature(NETWORKS[name]).parameters if each not in _SHAPES]
    for key, value in network.items():
        if key == "name":
            continue
        if key not in known:
            raise ValueError(f"network.{key}: {name} has no such argument; known: {', '.join(known)}")
        _check_argument(f"network.{key}", value)


def _check_argument(name: str, value: Any, length: int = 100) -> None:
    """Check that a value of a nested configuration is plain and of a size that can be meant."""
    if isinstance(value, list | tuple):
        if len(value) > length:
            raise ValueError(f"{name} has {len(value)} entries; expected at most {length}")
        for index, each in enumerate(value):
            if isinstance(each, list | tuple | dict):
                raise ValueError(f"{name}[{index}]={shown(each)}: expected a plain value")
            _check_argument(f"{name}[{index}]", each)
    elif isinstance(value, dict):
        raise ValueError(f"{name}={shown(value)}: expected a plain value or a list of such")
    elif isinstance(value, int | float) and (not math.isfinite(value) or abs(value) > _MOST_ARGUMENT):
        raise ValueError(f"{name}={shown(value)}: expected a finite number of at most {_MOST_ARGUMENT}")
