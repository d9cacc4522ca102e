"""The loop of a training, whatever is taught: AdamW, half a cosine, moving average, resume after a kill."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar


class EMAModel:
    """Average of a module's state with decay ``min(limit, 1 − (1 + step)^−power)``.

    The decay starts near zero, so that the first random weights are soon forgotten; this is the schedule that
    Diffusion Policy uses (power 0.75).
    """

    def __init__(self, module: nn.Module, power: float = 0.75, limit: float = 0.9999) -> None:
        self.power, self.limit, self.step = power, limit, 0
        self.average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present weights."""
        self.step += 1
        decay = min(self.limit, 1.0 - (1.0 + self.step) ** -self.power)
        for name, tensor in module.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(tensor, 1.0 - decay)
            else:
                average.copy_(tensor)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Averages and the step, as tensors and integers."""
        return {"step": self.step, **{f"average.{name}": tensor for name, tensor in self.average.items()}}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.step = int(state["step"])
        for name, tensor in self.average.items():
            tensor.copy_(torch.as_tensor(state[f"average.{name}"]))


STATE = "training.pt"
LOG = "training.jsonl"
FREE = ("threads", "save_every")
"""Settings that do not change what is learned."""


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


Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
"""Mean loss of a network over the examples at some indices, ``(n,)``; noise and timesteps come from the generator."""

Save = Callable[[nn.Module, Path], None]
"""Writes a network into a folder so that a kill at any moment leaves the old or the new one."""


@dataclass(frozen=True)
class TrainingObjective:
    """What is taught.

    Attributes:
        examples: how many there are to learn from. loss: on them.
        held_out: how many there are to validate on. validation: the loss on those.
        save: writes the averaged network.
        identity: in plain types, what makes this lesson another than another one, beside the settings.
    """

    examples: int
    loss: Loss
    held_out: int
    validation: Loss
    save: Save
    identity: dict[str, Any]


class TrainingLoop:
    """Trains ``network``; writes everything into ``folder``; goes on where a killed run stopped.

    ``folder`` holds ``training.pt`` (the state to resume from), ``training.jsonl`` (one line a validation) and what
    ``lesson.save`` makes of the moving average.
    """

    def __init__(self, network: nn.Module, lesson: TrainingObjective, settings: TrainingSettings, folder: Path) -> None:
        self.network, self.lesson, self.settings, self.folder = network, lesson, settings, folder
        self.device = next(network.parameters()).device
        self.bfloat16 = has_bfloat16(self.device) if settings.bfloat16 is None else settings.bfloat16
        self.average = EMAModel(network)
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
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

    def run(self) -> nn.Module:
        """Train to the end. Can be interrupted at any time and called again with the same folder.

        Returns:
            The network with averaged weights, in evaluation mode.

        Raises:
            ResumeError: ``folder`` holds another run, or a state that cannot be read.
        """
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
        return self.averaged()

    def averaged(self) -> nn.Module:
        """A copy of the network with the moving-average weights."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(self.average.average)
        return network.eval()

    @torch.no_grad()
    def validation_loss(self, network: nn.Module, batches: int = 8) -> float:
        """Loss of ``network`` on held-out examples, with the same noise and timesteps every time."""
        generator = torch.Generator().manual_seed(1)
        order = torch.randperm(self.lesson.held_out, generator=generator)
        picks = torch.split(order, self.settings.batch_size)[:batches]
        with self._precision():
            losses = [self.lesson.validation(network, index, generator) for index in picks]
        return float(torch.stack(losses).mean())

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _batch(self) -> Tensor:
        size = min(self.settings.batch_size, self.lesson.examples)
        if len(self.order) < size:
            self.order = torch.randperm(self.lesson.examples, generator=self.generator)
        index, self.order = self.order[:size], self.order[size:]
        return index

    def _step(self) -> float:
        self.network.train()
        with self._precision():
            loss = self.lesson.loss(self.network, self._batch(), self.generator)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.rate.step()
        self.step += 1
        self.average.update(self.network)
        return float(loss.detach())

    def _save(self, train_loss: float, seconds_a_step: float) -> None:
        averaged = self.averaged()
        line = {
            "step": self.step,
            "train_loss": round(train_loss, 6),
            "validation_loss": round(self.validation_loss(averaged), 6),
            "learning_rate": self.rate.get_last_lr()[0],
            "seconds_a_step": round(seconds_a_step, 4),
        }
        with (self.folder / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
        self.lesson.save(averaged, self.folder)
        state = {
            "settings": asdict(self.settings) | self.lesson.identity,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "average": self.average.state_dict(),
            "generator": self.generator.get_state(),
            "dropout": torch.get_rng_state(),  # layers that drop draw from torch's own generator
            "order": self.order,
        }
        with atomic_path(self.folder / STATE) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True, map_location=self.device)
        except Exception as error:
            raise ResumeError(f"{path} cannot be read ({error}); delete it to train from the start") from error
        old, new = state["settings"], asdict(self.settings) | self.lesson.identity
        differ = {
            key: (old.get(key), new.get(key)) for key in sorted({*old, *new} - {*FREE}) if old.get(key) != new.get(key)
        }
        if differ:
            raise ResumeError(
                f"{self.folder} holds a run with other settings (found, asked for): {differ}; "
                "choose another out= or the old settings"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["dropout"].cpu())
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
