"""LeRobot's and robomimic's own denoising loops, where these are installed, beside this library's samplers.

Both have the U-Net of Diffusion Policy as this library does. A policy with one is sampled by the peer's own loop, own
network and own scheduler, with the policy's weights carried over; a policy with another network puts that in place of
the peer's. Either way :func:`disagreement` says how far the peer's chunk is from the one that diffusers' scheduler
makes of the same noises, so that what is timed is the same computation.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from specpolicy import SampleResult, SchedulerSampler, samplers
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.unet1d import ConditionalUnet1d

SETTINGS = (("DDPM", 100), ("DDIM", 10))
_ALIKE = (
    (r"^timestep_embedding\.mlp\.0", "diffusion_step_encoder.1"),
    (r"^timestep_embedding\.mlp\.2", "diffusion_step_encoder.3"),
    (r"^(down|up)\.", r"\1_modules."),
    (r"^middle\.", "mid_modules."),
    (r"^head\.0\.", "final_conv.0.block."),
    (r"^head\.1\.", "final_conv.1."),
    (r"\.film\.", ".cond_encoder.1."),
    (r"\.skip\.", ".residual_conv."),
)
LEROBOT_NAMES = (
    *_ALIKE,
    (r"^(down|up)sample\.(\d+)\.", r"\1_modules.\2.2."),
    (r"\.first\.", ".conv1.block."),
    (r"\.second\.", ".conv2.block."),
)
ROBOMIMIC_NAMES = (
    *_ALIKE,
    (r"^(down|up)sample\.(\d+)\.", r"\1_modules.\2.2.conv."),
    (r"\.first\.", ".blocks.0.block."),
    (r"\.second\.", ".blocks.1.block."),
)


@dataclass(frozen=True)
class PeerSampler:
    """A peer's loop in the shape of a sampler: it draws its own noises, from the global generator, as its users run it.

    Attributes:
        loop: conditions of shape ``(b, c)`` to chunks, ``(b, horizon, action_dim)`` or a later part of them.
        kind, steps: its setting. exact: whether the distribution is that of the policy's 100-step chain.
    """

    loop: Callable[[Tensor], Tensor]
    kind: str
    steps: int
    exact: bool

    def __call__(self, denoiser: Any, noise: Tensor, cond: Tensor, generator: Any = None) -> SampleResult:
        """Sample; of the arguments only the conditions are used, for the network is inside."""
        passes = torch.full((len(cond),), self.steps)
        return SampleResult(self.loop(cond), passes, passes)


class OurNetwork(nn.Module):
    """Any network of this library, called as both peers call theirs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        """Predict at noisy chunks ``sample``; robomimic has one timestep for all rows."""
        return self.network(sample, timestep.to(sample.device).expand(len(sample)), global_cond)


def peers(policy: DiffusionPolicy, compiled: bool = False) -> tuple[dict[str, PeerSampler], dict[str, str]]:
    """Samplers by name, and what each peer is: its version, or why it is missing.

    Args:
        policy: whose sizes and weights are taken.
        compiled: LeRobot's with its own ``compile_model`` setting too; robomimic has none.
    """
    made: dict[str, PeerSampler] = {}
    about: dict[str, str] = {}
    whose = "" if isinstance(policy.network, ConditionalUnet1d) else ", our network"
    for name, build in {"LeRobot": _lerobot, "robomimic": _robomimic}.items():
        try:
            for kind, steps in SETTINGS:
                exact = (kind, steps) == ("DDPM", 100)
                label = f"{name}'s loop{whose}, {kind}-{steps}"
                made[label] = PeerSampler(build(policy, kind, steps, False), kind, steps, exact)
                if compiled and build is _lerobot:
                    made[f"{label}, compiled"] = PeerSampler(build(policy, kind, steps, True), kind, steps, exact)
            about[name] = import_module(name.lower()).__version__
        except ImportError as error:
            about[name] = f"left out: {error}"
    return made, about


def disagreement(peer: PeerSampler, policy: DiffusionPolicy, cond: Tensor, seed: int = 0) -> float:
    """Largest difference between the peer's chunks and those of diffusers' scheduler, from the same noises."""
    reference: Any = (
        SchedulerSampler(policy.scheduler, peer.steps) if peer.kind == "DDPM" else samplers.ddim(policy, peer.steps)
    )
    with torch.inference_mode(), torch.random.fork_rng([policy.device] if policy.device.type == "cuda" else []):
        torch.manual_seed(seed)
        noise = torch.randn(len(cond), *policy.event_shape, device=policy.device)
        expected = reference(policy, noise, cond).sample
        torch.manual_seed(seed)
        chunk = peer.loop(cond)
    # robomimic keeps the actions from the present step on
    return float((chunk - expected[:, expected.shape[1] - chunk.shape[1] :]).abs().max())


def carried(network: ConditionalUnet1d, names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The weights of a U-Net under a peer's names."""
    state = {}
    for name, value in network.state_dict().items():
        for mine, theirs in names:
            name = re.sub(mine, theirs, name)
        state[name] = value
    return state


def _lerobot(policy: DiffusionPolicy, kind: str, steps: int, compiled: bool) -> Callable[[Tensor], Tensor]:
    types = import_module("lerobot.configs.types")
    diffusion = import_module("lerobot.policies.diffusion.modeling_diffusion")
    horizon, action_dim = policy.event_shape
    schedule = policy.scheduler.config
    channels, timestep_dim = _sizes(policy)
    with contextlib.redirect_stderr(io.StringIO()):
        config = diffusion.DiffusionConfig(
            n_obs_steps=policy.config.n_obs_steps,
            horizon=horizon,
            n_action_steps=policy.config.n_action_steps,
            input_features={
                "observation.state": types.PolicyFeature(types.FeatureType.STATE, (policy.observations.dim,))
            },
            output_features={"action": types.PolicyFeature(types.FeatureType.ACTION, (action_dim,))},
            down_dims=channels,
            diffusion_step_embed_dim=timestep_dim,
            noise_scheduler_type=kind,
            num_train_timesteps=schedule.num_train_timesteps,
            beta_schedule=schedule.beta_schedule,
            clip_sample=schedule.clip_sample,
            num_inference_steps=steps,
            device=str(policy.device),
        )
    model = diffusion.DiffusionModel(config).to(policy.device).eval()
    # its configuration refuses to predict v; its loop leaves what is predicted to diffusers, which does not
    model.noise_scheduler.register_to_config(prediction_type=schedule.prediction_type)
    if isinstance(policy.network, ConditionalUnet1d):
        model.unet.load_state_dict(carried(policy.network, LEROBOT_NAMES))
    else:
        model.unet = OurNetwork(policy.network)
    if compiled:  # as its constructor does
        model.unet = torch.compile(model.unet, mode=config.compile_mode)
    return lambda cond: model.conditional_sample(len(cond), global_cond=cond)


def _robomimic(policy: DiffusionPolicy, kind: str, steps: int, compiled: bool) -> Callable[[Tensor], Tensor]:
    with contextlib.redirect_stdout(io.StringIO()):  # it reports a missing macro file, and every network's size
        nets = import_module("robomimic.models.diffusion_policy_nets")
        horizon, action_dim = policy.event_shape
        past, schedule = policy.config.n_obs_steps, policy.scheduler.config
        config = import_module("robomimic.config").config_factory("diffusion_policy")
        with config.unlocked():
            config.observation.modalities.obs.low_dim = ["state"]
            config.algo.horizon.n_obs_steps = past
            config.algo.horizon.horizon = horizon - past + 1
            config.algo.horizon.prediction_horizon = horizon
            config.algo.ema.enabled = False  # the policy's weights are averaged ones already
            config.algo.optim_params.policy.learning_rate.scheduler_type = "linear"  # nothing is trained here
            for each in ("ddpm", "ddim"):
                config.algo[each].enabled = each == kind.lower()
                config.algo[each].num_train_timesteps = schedule.num_train_timesteps
                config.algo[each].num_inference_timesteps = steps
                config.algo[each].beta_schedule = schedule.beta_schedule
                config.algo[each].clip_sample = schedule.clip_sample
                config.algo[each].prediction_type = schedule.prediction_type
        import_module("robomimic.utils.obs_utils").initialize_obs_utils_with_config(config)
        shapes = {"state": [policy.observations.dim]}
        algo = import_module("robomimic.algo").algo_factory(
            "diffusion_policy", config, shapes, action_dim, policy.device
        )
        channels, timestep_dim = _sizes(policy)
        network: nn.Module = OurNetwork(policy.network)
        if isinstance(policy.network, ConditionalUnet1d):
            cond_dim = past * policy.observations.dim
            network = nets.ConditionalUnet1D(action_dim, cond_dim, timestep_dim, list(channels)).to(policy.device)
            network.load_state_dict(carried(policy.network, ROBOMIMIC_NAMES))
    algo.nets["policy"]["noise_pred_net"] = network  # its own has the published size, whatever is configured
    algo.set_eval()
    return lambda cond: algo._get_action_trajectory({"state": cond.view(len(cond), past, -1)})


def _sizes(policy: DiffusionPolicy) -> tuple[tuple[int, ...], int]:
    """Channels and timestep embedding; least ones, to be thrown away, where the network is no U-Net."""
    network: Any = policy.network
    if not isinstance(policy.network, ConditionalUnet1d):
        return (8,), 8
    channels = tuple(level[0].first[0].out_channels for level in network.down)
    return channels, 2 * len(network.timestep_embedding.frequencies)
