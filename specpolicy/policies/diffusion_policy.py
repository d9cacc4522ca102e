"""A diffusion policy: observation history in, action chunk out (Chi et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from specpolicy.policies.cameras import CameraEncoders
from specpolicy.policies.checkpoint import read_checkpoint, write_checkpoint
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.networks import ConditionTables, build_network
from specpolicy.policies.normalizer import NORMALIZERS
from specpolicy.policies.observations import ObservationSpec
from specpolicy.policies.prefix import PrefixError, Prefixes, PrefixLayout
from specpolicy.policies.rotations import convert_rotations
from specpolicy.speculative.denoiser import PreparedCondition
from specpolicy.speculative.inputs import Generators, kind_of
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler_call import PreDraftingSampler, Sampler
from specpolicy.utils.diffusers_schedulers import DDIMScheduler, DDPMScheduler, scheduler_from_config


@dataclass(frozen=True)
class ActionChunk:
    """Actions to play, and how they were found.

    Attributes:
        actions: shape ``(batch, n_action_steps, env_action_dim)``, in the environment's units.
        prediction: the whole chunk, shape ``(batch, horizon, env_action_dim)``, same units.
        result: what the sampler returned: normalized samples, network evaluations, acceptance.
    """

    actions: NDArray[np.float32]
    prediction: NDArray[np.float32]
    result: SampleResult


class DiffusionPolicy(nn.Module):
    """Network, image encoders, normalizers and horizons of one trained policy.

    The sampler is not part of the policy: the same weights are sampled by sequential DDPM, DDIM or speculation,
    whichever is handed to :meth:`predict_action`.

    Attributes:
        folder: the checkpoint that it was loaded from; None if it was made here.
        prefix: where actions under way stand in its condition; None for a policy that was not trained for that.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.folder: Path | None = None
        self.encoders = CameraEncoders(config.cameras)
        for key, features in self.encoders.features.items():
            if features != config.observations[key]:
                raise ValueError(
                    f"observations.{key} is {config.observations[key]}, but this camera has {features} features"
                )
        images: dict[str, tuple[int, ...]] = {key: cam.raw_shape for key, cam in self.encoders.cameras.items()}
        self.observations = ObservationSpec(config.observations, config.n_obs_steps, images)
        self.prefix: PrefixLayout | None = None
        if config.max_delay:
            chain = self.training_scheduler
            self.prefix = PrefixLayout(
                config.first_executed, config.max_delay, config.action_dim,
                chain.alphas_cumprod, chain.config.prediction_type,
            )  # fmt: skip
        prefix_dim = 0 if self.prefix is None else self.prefix.width
        cond_dim = 0 if config.inpainting else self.cond_dim
        self.network = build_network(config.network, config.trajectory_dim, cond_dim, config.horizon, prefix_dim)
        self._tables = ConditionTables()
        normalizer = NORMALIZERS[config.normalization]
        self.observation_normalizer = normalizer.identity(self.observations.dim)
        self.action_normalizer = normalizer.identity(config.action_dim)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the network computes; samples stay in float32."""
        return next(self.network.parameters()).dtype

    @property
    def scheduler(self) -> DDPMScheduler | DDIMScheduler:
        """A fresh copy of the scheduler that the policy is played with."""
        return scheduler_from_config(DDIMScheduler if self._deterministic else DDPMScheduler, self.config.scheduler)

    @property
    def _deterministic(self) -> bool:
        return self.config.scheduler.get("_class_name") == "DDIMScheduler"

    @property
    def training_scheduler(self) -> DDPMScheduler:
        """A fresh copy of the scheduler of the chain that the network was trained for; of the same betas."""
        return scheduler_from_config(DDPMScheduler, self.config.scheduler)

    @cached_property
    def num_train_timesteps(self) -> int:
        """Timesteps of the chain that the network was trained for; read once, since making a scheduler takes 4 ms."""
        steps: int = self.training_scheduler.config.num_train_timesteps
        return steps

    @property
    def num_inference_steps(self) -> int:
        """Steps of the DDPM chain that is sampled if nothing else is asked for.

        Those that the policy is played with; all training timesteps for one that is played deterministically.
        """
        steps = self.config.num_inference_steps
        return self.num_train_timesteps if steps is None or self._deterministic else steps

    @property
    def event_shape(self) -> tuple[int, int]:
        """Shape of what is sampled for one chunk: ``(horizon, action_dim)``; wider with inpainted observations."""
        return self.config.horizon, self.config.trajectory_dim

    @property
    def cond_dim(self) -> int:
        """Length of a condition: the flattened observation history, then the prefix."""
        return self.config.n_obs_steps * self.observations.dim + (0 if self.prefix is None else self.prefix.width)

    def condition(
        self, observation: Float[Tensor, "b steps obs"], prefix: Float[Tensor, "b width"] | None = None
    ) -> Float[Tensor, "b cond"]:
        """Normalize a joined observation history and flatten it into the network's condition.

        Args:
            observation: raw units.
            prefix: columns of ``self.prefix``, appended; None: no action is under way.
        """
        seen = self.observation_normalizer.normalize(observation).flatten(1)
        if self.prefix is not None:
            seen = torch.cat([seen, seen.new_zeros(len(seen), self.prefix.width) if prefix is None else prefix], dim=1)
        return seen.to(self.dtype)

    def join(self, observation: Mapping[str, Any]) -> Float[Tensor, "b steps obs"]:
        """Check named observations and join their parts, images as their features; see :class:`CameraEncoders`.

        Args:
            observation: see :meth:`ObservationSpec.check`.

        Returns:
            Raw units, in the order of ``config.observations``.

        Raises:
            ObservationError: the observation does not fit the policy.
        """
        parts = self.observations.check(observation)
        images = {key: part for key, part in parts.items() if part.dtype == np.uint8}
        joined: dict[str, Tensor] = dict(self.encoders.encode(images, self.device))
        joined |= {key: torch.from_numpy(part).to(self.device) for key, part in parts.items() if key not in images}
        return torch.cat([joined[key] for key in parts], dim=-1)

    def insert_features(
        self, vectors: Float[Tensor, "*b vectors"], features: Mapping[str, Float[Tensor, "*b _"]]
    ) -> Float[Tensor, "*b obs"]:
        """Put the features of each camera at its place among the other, joined parts of an observation."""
        lengths = {key: dim for key, dim in self.config.observations.items() if key not in self.config.cameras}
        parts = dict(zip(lengths, torch.split(vectors, list(lengths.values()), dim=-1), strict=True)) if lengths else {}
        return torch.cat([(parts | dict(features))[key] for key in self.config.observations], dim=-1)

    def encode(self, observation: Mapping[str, Any], prefix: Prefixes | None = None) -> Float[Tensor, "b cond"]:
        """Check and join named observations and condition on them, and on the actions that are under way.

        Args:
            observation: see :meth:`join`.
            prefix: see :meth:`predict_action`.

        Raises:
            ObservationError: the observation does not fit the policy.
            PrefixError: the prefix does not, or the policy takes none.
        """
        joined = self.join(observation)
        if self.prefix is None:
            for each in prefix or ():
                if each is not None and len(each):
                    self.check_prefix(each)
            return self.condition(joined)
        return self.condition(
            joined, self.prefix.pack(prefix, len(joined), self.action_normalizer.normalize, self.device)
        )

    def check_prefix(self, actions: NDArray[Any]) -> None:
        """Refuse actions under way that the policy cannot continue.

        Args:
            actions: of one chunk, environment units.

        Raises:
            PrefixError: they do not fit, or the policy takes none.
        """
        if self.prefix is None:
            raise PrefixError(
                "this policy takes no prefix of actions under way: it was not trained for delays (policy.max_delay=0)"
            )
        self.prefix.checked(actions)

    def reset(self) -> None:
        """Forget the camera frames that were encoded for the last chunk."""
        self.encoders.forget()

    def prepare_condition(self, cond: Any) -> Any:
        """Compute once a chunk what the network makes of the observations; see :class:`ConditionTables`.

        Args:
            cond: of :meth:`encode`, shape ``(b, cond)``.

        Returns:
            What :meth:`forward` takes rows of in the place of ``cond``; ``cond`` itself in training, with gradients and
            in half precision.
        """
        if not isinstance(cond, Tensor):
            return cond
        seen = cond[:, :0] if self.config.inpainting else cond
        rows = self._tables.condition(self.network, seen, lambda: self.num_train_timesteps)
        return cond if rows is None else PreparedCondition(cond, rows)

    def forward(
        self, x: Float[Tensor, "n time action"], timestep: Tensor, cond: Float[Tensor, "n cond"] | PreparedCondition
    ) -> Float[Tensor, "n time action"]:
        """The denoiser that samplers call: normalized noisy chunks in, the scheduler's prediction type out.

        Args:
            x: in the dtype of the samples; the network computes in its own.
            timestep: of each chunk, shape ``(n,)``.
            cond: of each chunk, as from :meth:`encode`, or rows of what :meth:`prepare_condition` made of it.

        Returns:
            Shape and dtype of ``x``.
        """
        cond, rows = cond if isinstance(cond, PreparedCondition) else (cond, None)
        if self.config.inpainting:
            # The network always sees the true observations, so that what the chain makes of them has no effect.
            steps, actions = self.config.n_obs_steps, self.config.action_dim
            known = cond.view(cond.shape[0], steps, -1)
            x = torch.cat([torch.cat([x[:, :steps, :actions], known], dim=-1), x[:, steps:]], dim=1)
            cond = cond[:, :0]
        # The network sees known actions clean, whatever noise the chain has there, and has nothing to say about them.
        seen = x if self.prefix is None else self.prefix.insert(x, cond)
        if rows is not None:
            output = self._tables.forward(self.network, seen.to(rows.dtype), timestep, rows).to(x.dtype)
        elif cond.dtype == x.dtype:
            output = self.network(seen, timestep, cond)
        else:
            output = self.network(seen.to(cond.dtype), timestep, cond).to(x.dtype)
        return output if self.prefix is None else self.prefix.answer(output, x, timestep, cond)

    @torch.inference_mode()
    def predict_action(
        self,
        observation: Mapping[str, Any],
        sampler: Sampler,
        generator: Generators = None,
        record: bool = False,
        predraft: PreDraft | None = None,
        prefix: Prefixes | None = None,
    ) -> ActionChunk:
        """Sample one action chunk for each observation of a batch.

        Args:
            observation: arrays of shape ``(batch, n_obs_steps, dim)``, the present step last; images as bytes, in
                their camera's layout. They are encoded once for the chunk.
            sampler: how to run the reverse diffusion.
            generator: one generator, or one for each entry of the batch (then a chunk does not depend on its
                neighbours in the batch).
            record: keep the whole trajectory in ``ActionChunk.result``.
            predraft: of :meth:`predraft` with this sampler. Fewer network evaluations are then left to do now, and the
                chunk still has exactly the policy's distribution at ``observation``. ``generator`` must not be set back
                to where it stood before the pre-draft.
            prefix: for each entry the actions that play from the present step on until the chunk is there, shape
                ``(d, action_dim)``, environment units; the chunk begins with them, and its rest has the policy's
                distribution given them. d is 0 to ``config.max_delay``; None: nothing is under way.

        Raises:
            ObservationError: the observation does not fit the policy.
            PrefixError: the prefix does not, or the policy was not trained for any.
            DenoiserError: the network returned NaN or infinity.
            ValueError: the pre-draft is of another batch size or chain.
            TypeError: the sampler cannot use pre-drafts.
        """
        if not callable(sampler):
            raise TypeError(
                f"sampler is a {kind_of(sampler)}; make one, e.g. with specpolicy.samplers.load('recycled', policy)"
            )
        cond = self.encode(observation, prefix)
        if predraft is None:
            noise = draw_noise((len(cond), *self.event_shape), generator, self.device)
            result = sampler(self, noise, cond=cond, generator=generator, record=record)
        else:
            result = _predrafting(sampler)(
                self, predraft.start, cond=cond, generator=generator, record=record, predraft=predraft
            )
        prediction = self.decode(result.sample)
        first = self.config.first_executed
        actions = prediction[:, first : first + self.config.n_action_steps]
        return ActionChunk(actions=actions, prediction=prediction, result=result)

    def decode(self, sample: Float[Tensor, "b time trajectory"]) -> NDArray[np.float32]:
        """Turn what was sampled into a whole chunk of actions in the environment's units.

        Args:
            sample: normalized, shape ``(batch, *event_shape)``.

        Returns:
            Shape ``(batch, horizon, action_dim)``, three coordinates less for each rotation that is converted.
        """
        actions = self.action_normalizer.unnormalize(sample[..., : self.config.action_dim])
        if self.config.rotations:
            actions = convert_rotations(actions, self.config.rotations)
        array: NDArray[np.float32] = actions.float().cpu().numpy()
        return array

    def report(self) -> str:
        """Say what this policy is; of another package's also what was assumed and what is done otherwise."""
        config, parameters = self.config, sum(p.numel() for p in self.network.parameters())
        arguments = ", ".join(f"{name}={value}" for name, value in config.network.items() if name != "name")
        lines = {
            "format": config.source.get("format", "specpolicy"),
            "task": config.task,
            "network": f"{config.network['name']} ({arguments}), {parameters / 1e6:.2f} M parameters",
            "observations": ", ".join(f"{key} ({dim})" for key, dim in config.observations.items()),
            **{
                f"camera {key}": f"{camera.get('backbone', 'resnet18')}, {' × '.join(map(str, camera['shape']))}"
                for key, camera in config.cameras.items()
            },
            "chunk": f"{config.horizon} actions predicted from {config.n_obs_steps} observation steps, "
            f"{config.n_action_steps} played from step {config.first_executed} on",
            "scheduler": f"{type(self.scheduler).__name__}, "
            f"{config.num_inference_steps or self.num_inference_steps} of {self.num_train_timesteps} timesteps",
            **config.source.get("found", {}),
        }
        text = [f"{name}: {line}" for name, line in lines.items()]
        for name in ("assumed", "deviations"):
            text += [f"{name}: {line}" for line in config.source.get(name, [])]
        return "\n".join(text)

    @torch.inference_mode()
    def predraft(
        self,
        observation: Mapping[str, Any],
        sampler: Sampler,
        generator: Generators = None,
        prefix: Prefixes | None = None,
    ) -> PreDraft:
        """Draft chunks for a predicted (or simply the latest) observation, while the robot is still busy.

        Hand them to :meth:`predict_action` once the true observation is there. Use a pre-draft once, and neither play
        it nor choose among several by what is in them: see :class:`PreDraft`.

        Args:
            observation: as in :meth:`predict_action`.
            sampler: the one that will be handed to :meth:`predict_action`.
            generator: as in :meth:`predict_action`.
            prefix: as in :meth:`predict_action`.

        Raises:
            ObservationError, PrefixError, DenoiserError: as :meth:`predict_action`.
            TypeError: the sampler cannot pre-draft.
        """
        cond = self.encode(observation, prefix)
        noise = draw_noise((len(cond), *self.event_shape), generator, self.device)
        return _predrafting(sampler).predraft(self, noise, cond=cond, generator=generator)

    def save_pretrained(self, folder: str | Path, half: bool = False) -> None:
        """Write ``config.json`` and ``policy.safetensors``, at once or not at all.

        Args:
            folder: where to; it is made if need be.
            half: store the weights of the network and the image encoders in 16 bits, for half the space. They are read
                into float32 again, rounded by up to a two thousandth; normalizers, and the policy in memory, stay as
                they are.
        """
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        for name in dict(self.named_parameters()) if half else ():
            weights[name] = weights[name].half()
        write_checkpoint(Path(folder), self.config, weights)

    @staticmethod
    def from_pretrained(
        folder: str | Path, device: str | torch.device = "cpu", task: str | None = None
    ) -> DiffusionPolicy:
        """Read a policy of this library's own format; :func:`specpolicy.load_policy` reads other packages', too.

        Args:
            folder: holds ``config.json`` and ``policy.safetensors``.
            device: where to put the weights.
            task: refuse a checkpoint that was trained on another task.

        Returns:
            The policy, in evaluation mode, in float32.

        Raises:
            CheckpointError: as of :func:`~specpolicy.policies.checkpoint.read_checkpoint`.
        """
        policy: DiffusionPolicy = read_checkpoint(Path(folder), DiffusionPolicy, task)
        policy.folder = Path(folder)
        return policy.to(device).eval().requires_grad_(False)


def _predrafting(sampler: Sampler) -> PreDraftingSampler:
    if not isinstance(sampler, PreDraftingSampler):
        raise TypeError(f"{type(sampler).__name__} cannot use pre-drafts; take a SpeculativeSampler")
    return sampler


def draw_noise(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Standard normal noise, row by row from a list of generators, or at once from a single one."""
    return ChainGenerators(generator, shape[0], device, torch.float32).noise(shape[1:])
