"""Training a diffusion policy: AdamW, cosine schedule, moving average, resume."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from specpolicy.policies import DiffusionPolicy
from specpolicy.progress import progress_bar

from .chunks import Chunks
from .ema import MovingAverage
from .target import training_target

STATE = "training.pt"
LOG = "training.jsonl"


class ResumeError(RuntimeError):
    """A training folder holds a run with other settings, or a state that cannot be read."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Args:
        steps: optimizer steps of the whole run; the learning rate falls to zero along half a cosine.
        batch_size: pairs a step, drawn without replacement within an epoch.
        learning_rate: peak rate of AdamW, reached after ``warmup_steps``.
        weight_decay: of AdamW.
        warmup_steps: linear rise of the learning rate.
        seed: of the weights, the order of the data, the noise and the timesteps.
        save_every: steps between two saved states and validations.
        bfloat16: run the network in bfloat16 autocast (weights and loss stay float32); None does so where the device
            has instructions for it, since it is slower than float32 elsewhere.
        threads: CPU threads; 0 leaves torch's choice.
    """

    steps: int = 20_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    seed: int = 0
    save_every: int = 500
    bfloat16: bool | None = None
    threads: int = 0


class Trainer:
    """Trains ``policy`` on ``train``; writes everything into ``folder``; goes on where a killed run stopped.

    ``folder`` holds ``training.pt`` (the state to resume from), ``training.jsonl`` (one line a validation) and, as a
    policy that can be loaded at any time, ``config.json`` with ``policy.safetensors`` (the moving average).
    """

    def __init__(
        self, policy: DiffusionPolicy, train: Chunks, valid: Chunks, settings: TrainingSettings, folder: Path
    ) -> None:
        self.policy, self.settings, self.folder = policy, settings, folder
        self.train, self.valid = train.to(policy.device), valid.to(policy.device)
        self.scheduler: DDPMScheduler = policy.scheduler
        self.bfloat16 = has_bfloat16(policy.device) if settings.bfloat16 is None else settings.bfloat16
        self.average = MovingAverage(policy)
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=settings.learning_rate,
            betas=(0.95, 0.999),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate_factor)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.order = torch.empty(0, dtype=torch.long)
        self.step = 0

    def _rate_factor(self, step: int) -> float:
        warmup = self.settings.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, self.settings.steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def run(self) -> None:
        """Train to the end. Can be interrupted at any time and called again with the same folder."""
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        started, loss_sum, since = time.monotonic(), 0.0, 0
        with progress_bar("training", total=self.settings.steps, completed=self.step) as bar:
            while self.step < self.settings.steps:
                loss_sum, since = loss_sum + self._step(), since + 1
                bar.advance()
                if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                    elapsed = time.monotonic() - started
                    self._save(train_loss=loss_sum / since, seconds_a_step=elapsed / since)
                    bar.describe(f"training, loss {loss_sum / since:.4f}")
                    started, loss_sum, since = time.monotonic(), 0.0, 0

    def _batch(self) -> tuple[Tensor, Tensor]:
        size = min(self.settings.batch_size, len(self.train))
        if len(self.order) < size:
            self.order = torch.randperm(len(self.train), generator=self.generator)
        index, self.order = self.order[:size], self.order[size:]
        return self.train.observations[index], self.train.actions[index]

    def _loss(self, observations: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the network's prediction; see :func:`training_target`."""
        policy, device = self.policy, self.policy.device
        clean = policy.action_normalizer.normalize(actions)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        levels = self.scheduler.config.num_train_timesteps
        timestep = torch.randint(levels, (len(clean),), generator=generator).to(device)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            predicted = policy(noisy, timestep, policy.condition(observations))
        return torch.nn.functional.mse_loss(predicted.float(), training_target(self.scheduler, clean, noise, timestep))

    def _step(self) -> float:
        loss = self._loss(*self._batch(), self.generator)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.rate.step()
        self.step += 1
        self.average.update(self.policy)
        return float(loss.detach())

    @torch.no_grad()
    def validation_loss(self, policy: DiffusionPolicy, batches: int = 8) -> float:
        """Loss of ``policy`` on the held-out pairs, with the same noise and timesteps every time."""
        generator = torch.Generator().manual_seed(1)
        trained, self.policy = self.policy, policy
        try:
            picks = torch.split(torch.randperm(len(self.valid), generator=generator), self.settings.batch_size)[
                :batches
            ]
            losses = [self._loss(self.valid.observations[i], self.valid.actions[i], generator) for i in picks]
        finally:
            self.policy = trained
        return float(torch.stack(losses).mean())

    def averaged_policy(self) -> DiffusionPolicy:
        """A copy of the policy with the moving-average weights."""
        policy = DiffusionPolicy(self.policy.config).to(self.policy.device)
        policy.load_state_dict(self.average.average)
        return policy.eval()

    def _save(self, train_loss: float, seconds_a_step: float) -> None:
        averaged = self.averaged_policy()
        line = {
            "step": self.step,
            "train_loss": round(train_loss, 6),
            "validation_loss": round(self.validation_loss(averaged), 6),
            "learning_rate": self.rate.get_last_lr()[0],
            "seconds_a_step": round(seconds_a_step, 4),
        }
        with (self.folder / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
        averaged.save(self.folder)
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "average": self.average.state_dict(),
            "generator": self.generator.get_state(),
            "order": self.order,
        }
        partial = self.folder / (STATE + ".partial")
        torch.save(state, partial)
        os.replace(partial, self.folder / STATE)

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True, map_location=self.policy.device)
        except Exception as error:
            raise ResumeError(f"{path} cannot be read ({error}); delete it to train from the start") from error
        free = ("threads", "save_every")  # these do not change what is learned
        old = {key: value for key, value in state["settings"].items() if key not in free}
        new = {key: value for key, value in asdict(self.settings).items() if key not in free}
        differ = {key: (old.get(key), new[key]) for key in new if old.get(key) != new[key]}
        if differ:
            raise ResumeError(
                f"{self.folder} holds a run with other settings (found, asked for): {differ}; "
                "choose another out= or the old settings"
            )
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"].cpu())
        self.order, self.step = state["order"].cpu(), state["step"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on ``device``."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux: float32 is never wrong
        return ""
