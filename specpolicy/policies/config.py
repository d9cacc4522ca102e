"""Everything needed to rebuild a policy before its weights are loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


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
        scheduler: configuration of the diffusers ``DDPMScheduler`` used in training.
        cameras: which of the observations are images, and how each is encoded; see
            :meth:`~specpolicy.policies.cameras.CameraSpec.from_dict`.
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

    def __post_init__(self) -> None:
        first = self.n_obs_steps - 1
        if self.n_obs_steps < 1 or self.n_action_steps < 1 or self.action_dim < 1:
            raise ValueError("n_obs_steps, n_action_steps and action_dim must be at least 1")
        if first + self.n_action_steps > self.horizon:
            raise ValueError(
                f"n_action_steps={self.n_action_steps} from step {first} on do not fit into "
                f"horizon={self.horizon}; at most {self.horizon - first} can be executed"
            )

        if unknown := [key for key in self.cameras if key not in self.observations]:
            raise ValueError(f"cameras {unknown} are none of the observations {list(self.observations)}")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; without ``cameras`` where there are none."""
        values = asdict(self)
        if not self.cameras:
            del values["cameras"]
        return values

    def check_interchangeable(self, other: PolicyConfig, role: str) -> None:
        """Raise ``ValueError`` unless the networks of both can be asked the same and answer in the same terms.

        Features of two encoders are not the same: policies with cameras are not interchangeable.

        ``role`` is what the other policy is to be, for the message: ``teacher``, ``draft network``.
        """
        for name in ("observations", "n_obs_steps", "action_dim", "horizon", "scheduler"):
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
        """Inverse of :meth:`to_dict`; unknown or missing keys raise ``ValueError`` naming them."""
        known = {f.name for f in fields(cls)}
        unknown, missing = set(values) - known, {"task", "observations", "action_dim"} - set(values)
        if unknown or missing:
            raise ValueError(f"policy config: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
        return cls(**values)
