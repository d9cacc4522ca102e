"""Stand-ins for live policies: classes, attributes and signatures of the packages, networks of a few numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

HORIZON, ACTIONS, OBSERVED, STEPS = 8, 2, 3, 2


def ddpm(steps: int = 100, **changes: Any) -> DDPMScheduler:
    return DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2", **changes)


def ddim(**changes: Any) -> DDIMScheduler:
    return DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", **changes)


class Net(nn.Module):
    """A network that depends on the state, on the timestep and on the condition, row by row."""

    def __init__(self, width: int = ACTIONS, cond: int = STEPS * OBSERVED) -> None:
        super().__init__()
        self.calls = 0
        generator = torch.Generator().manual_seed(5)
        self.mix = nn.Parameter(0.4 * torch.randn(width, width, generator=generator) + torch.eye(width))
        self.told = nn.Parameter(0.2 * torch.randn(cond, width, generator=generator))

    def answer(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        self.calls += 1
        assert timestep.shape in ((), (len(x),)) and timestep.dtype == torch.long
        scale = 1 / (1 + timestep.expand(len(x)) / 100)[:, None, None]
        shift = 0 if cond is None else (cond.flatten(1) @ self.told)[:, None]
        return (x @ self.mix + shift) * scale


class LeRobotUnet(Net):
    def forward(self, x: Tensor, timestep: Tensor, global_cond: Tensor | None = None) -> Tensor:
        return self.answer(x, timestep, global_cond)


class DiffusionModel(nn.Module):
    """LeRobot's, of 0.4 and later."""

    def __init__(self, scheduler: Any, steps: int | None) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            horizon=HORIZON, n_action_steps=4, n_obs_steps=STEPS, action_feature=SimpleNamespace(shape=(ACTIONS,))
        )
        self.unet, self.noise_scheduler = LeRobotUnet(), scheduler
        self.num_inference_steps = steps or scheduler.config.num_train_timesteps

    def conditional_sample(
        self,
        batch_size: int,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        x = torch.randn(batch_size, HORIZON, ACTIONS, generator=generator) if noise is None else noise
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            rows = torch.full((batch_size,), int(t), dtype=torch.long)
            x = self.noise_scheduler.step(
                self.unet(x, rows, global_cond=global_cond), t, x, generator=generator
            ).prev_sample
        return x

    def generate_actions(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        state = batch["observation.state"]
        return self.conditional_sample(len(state), global_cond=state.flatten(1), noise=noise)[:, STEPS - 1 : STEPS + 3]


class DiffusionPolicy(nn.Module):
    """LeRobot's."""

    def __init__(self, scheduler: Any = None, steps: int | None = None) -> None:
        super().__init__()
        self.diffusion = DiffusionModel(scheduler or ddpm(), steps)
        self.queue: list[Tensor] = []

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        if not self.queue:
            self.queue = list(self.diffusion.generate_actions(batch).unbind(1))
        return self.queue.pop(0)


class StanfordUnet(Net):
    def forward(
        self, sample: Tensor, timestep: Any, local_cond: Tensor | None = None, global_cond: Tensor | None = None
    ) -> Tensor:
        return self.answer(sample, torch.as_tensor(timestep), global_cond)


class DiffusionUnetLowdimPolicy(nn.Module):
    """diffusion_policy's, with a global condition or with inpainted observations."""

    def __init__(self, scheduler: Any = None, steps: int = 100, inpainting: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.inpainting, self.kwargs = inpainting, kwargs
        self.model = StanfordUnet(ACTIONS + OBSERVED if inpainting else ACTIONS)
        self.noise_scheduler, self.num_inference_steps = scheduler or ddpm(), steps

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        x = torch.randn(condition_data.shape, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            x[condition_mask] = condition_data[condition_mask]
            output = self.model(x, t, local_cond=local_cond, global_cond=global_cond)
            x = self.noise_scheduler.step(output, t, x, generator=generator, **kwargs).prev_sample
        x[condition_mask] = condition_data[condition_mask]
        return x

    @torch.no_grad()
    def predict_action(self, obs_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        obs = obs_dict["obs"]
        data = torch.zeros(len(obs), HORIZON, ACTIONS + (OBSERVED if self.inpainting else 0))
        mask = torch.zeros_like(data, dtype=torch.bool)
        if self.inpainting:
            data[:, :STEPS, ACTIONS:], mask[:, :STEPS, ACTIONS:] = obs, True
        told = None if self.inpainting else obs.flatten(1)
        chunk = self.conditional_sample(data, mask, local_cond=None, global_cond=told, **self.kwargs)
        return {"action": chunk[:, STEPS - 1 : STEPS + 3, :ACTIONS], "action_pred": chunk}


class StanfordTransformer(Net):
    def forward(self, sample: Tensor, timestep: Any, cond: Tensor | None = None) -> Tensor:
        return self.answer(sample, torch.as_tensor(timestep), cond)


class DiffusionTransformerLowdimPolicy(nn.Module):
    """diffusion_policy's: the condition has its own name and keeps its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.noise_scheduler, self.num_inference_steps = StanfordTransformer(), ddpm(), 100

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        x = torch.randn(condition_data.shape, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            x = self.noise_scheduler.step(self.model(x, t, cond), t, x, generator=generator, **kwargs).prev_sample
        return x

    @torch.no_grad()
    def predict_action(self, obs_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        data = torch.zeros(len(obs_dict["obs"]), HORIZON, ACTIONS)
        chunk = self.conditional_sample(data, torch.zeros_like(data, dtype=torch.bool), cond=obs_dict["obs"])
        return {"action": chunk[:, STEPS - 1 : STEPS + 3]}


class RobomimicUnet(Net):
    def forward(self, sample: Tensor, timestep: Any, global_cond: Tensor | None = None) -> Tensor:
        return self.answer(sample, torch.as_tensor(timestep), global_cond)


class ObservationGroupEncoder(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, obs: dict[str, Tensor], goal: dict[str, Tensor] | None = None) -> Tensor:
        assert all(part.ndim == 2 for part in obs.values())
        return self.gain * torch.cat([obs[key] for key in sorted(obs)], dim=-1)


def _nets(gain: float, frames: int) -> nn.ModuleDict:
    parts = {"obs_encoder": ObservationGroupEncoder(gain), "noise_pred_net": RobomimicUnet(cond=frames * OBSERVED)}
    return nn.ModuleDict({"policy": nn.ModuleDict(parts)})


class DiffusionPolicyUNet:
    """robomimic's algorithm: no module itself; the averaged copy is what plays."""

    def __init__(self, averaged: bool = True, deterministic: bool = False, frames: int = STEPS) -> None:
        self.nets, self.ac_dim, self.frames = _nets(5.0, frames), ACTIONS, frames
        self.ema = SimpleNamespace(averaged_model=_nets(1.0, frames)) if averaged else None
        self.obs_shapes = {"eef": (2,), "grip": (1,)}
        self.noise_scheduler = ddim() if deterministic else ddpm()
        self.algo_config = SimpleNamespace(
            horizon=SimpleNamespace(observation_horizon=frames, action_horizon=4, prediction_horizon=HORIZON),
            ddpm=SimpleNamespace(enabled=not deterministic, num_inference_timesteps=100),
            ddim=SimpleNamespace(enabled=deterministic, num_inference_timesteps=10),
        )
        self.queue: list[Tensor] = []

    def _get_action_trajectory(self, obs_dict: dict[str, Tensor], goal_dict: Any = None) -> Tensor:
        nets = (self.nets if self.ema is None else self.ema.averaged_model)["policy"]
        frames = {key: obs_dict[key] if obs_dict[key].ndim == 3 else obs_dict[key][:, None] for key in self.obs_shapes}
        flat = {key: part.flatten(0, 1) for key, part in frames.items()}
        cond = nets["obs_encoder"](obs=flat, goal=goal_dict).reshape(len(obs_dict["eef"]), -1)
        x = torch.randn(len(cond), HORIZON, ACTIONS)
        part = self.algo_config.ddpm if self.algo_config.ddpm.enabled else self.algo_config.ddim
        self.noise_scheduler.set_timesteps(part.num_inference_timesteps)
        for t in self.noise_scheduler.timesteps:
            output = nets["noise_pred_net"](sample=x, timestep=t, global_cond=cond)
            x = self.noise_scheduler.step(output, t, x).prev_sample
        return x[:, self.frames - 1 : self.frames + 3]

    @torch.no_grad()
    def get_action(self, obs_dict: dict[str, Tensor], goal_dict: Any = None) -> Tensor:
        if not self.queue:
            self.queue = list(self._get_action_trajectory(obs_dict=obs_dict).unbind(1))
        return self.queue.pop(0)


class RolloutPolicy:
    """robomimic's wrapper around an algorithm."""

    def __init__(self, policy: DiffusionPolicyUNet) -> None:
        self.policy = policy

    def __call__(self, ob: dict[str, Tensor]) -> Tensor:
        return self.policy.get_action(ob)
