"""Train a network: AdamW, half a cosine, moving average of the weights, resume after a kill."""

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
from torch.optim.swa_utils import AveragedModel

from specpolicy import __version__
from specpolicy.utils.checks import check_flag, check_integer, check_number
from specpolicy.utils.digests import source_digest
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.run_identity import claim_folder

STATE = "training.pt"
LOG = "training.jsonl"
IDENTITY = "training.json"
_FREE = ("settings.threads", "settings.save_every")  # they do not change what is learned
_TRACES = (STATE, "*.safetensors", "config.json", "model_index.json")


class ResumeError(RuntimeError):
    """A training folder holds a state that cannot be read."""


class TrainingDiverged(RuntimeError):
    """The loss or the weights are no longer finite."""


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

    Raises:
        ValueError: a setting is of another type or out of its range.
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

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "warmup_steps": 0, "seed": 0, "save_every": 1, "threads": 0}
        checked: dict[str, Any] = {
            name: check_integer(f"training.{name}", getattr(self, name), bound, 2**63 - 1)
            for name, bound in least.items()
        }
        checked["learning_rate"] = check_number("training.learning_rate", self.learning_rate, above=0)
        checked["weight_decay"] = check_number("training.weight_decay", self.weight_decay, least=0)
        if self.bfloat16 is not None:
            check_flag("training.bfloat16", self.bfloat16)
        for name, value in checked.items():
            object.__setattr__(self, name, value)


Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
"""Mean loss of a network over the examples at some indices, ``(n,)``; noise and timesteps come from the generator."""

Save = Callable[[nn.Module, Path], None]
"""Writes a network into a folder so that a kill at any moment leaves the old or the new one."""


@dataclass(frozen=True)
class TrainingObjective:
    """What a network is to learn.

    Attributes:
        examples: number of training examples, at least 1.
        loss: mean loss on some of them.
        held_out: number of validation examples, at least 1.
        validation: mean loss on some of those.
        save: writes the averaged network.
        identity: in plain types, everything beside the settings that decides what is learned: configuration, data by
            digest.
    """

    examples: int
    loss: Loss
    held_out: int
    validation: Loss
    save: Save
    identity: dict[str, Any]


def averaged_model(network: nn.Module, power: float = 0.75, limit: float = 0.9999) -> AveragedModel:
    """Make the exponential moving average of a network's weights.

    The decay of update n is ``min(limit, 1 − (1 + n)^−power)``, which starts at zero, so that the first random weights
    are soon forgotten: the schedule of Diffusion Policy (Chi et al. 2023).

    Args:
        network: whose weights are averaged; its buffers are copied.
        power: exponent of the schedule, above 0.
        limit: largest decay, below 1.

    Returns:
        The average; call ``update_parameters`` after each optimizer step.
    """

    def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        decay = min(limit, 1.0 - (1.0 + int(count)) ** -power)
        return torch.lerp(mean, value, 1.0 - decay)

    return AveragedModel(network, avg_fn=average)


class TrainingLoop:
    """Train a network; everything is written into one folder, and a killed run goes on where it stopped.

    The folder holds ``training.json`` (what decides the result), ``training.pt`` (the state to resume from),
    ``training.jsonl`` (one line a validation) and what ``objective.save`` makes of the averaged network.

    Args:
        network: to train, on the device to train on.
        objective: what it is to learn.
        settings: how to train.
        folder: of the run.
    """

    def __init__(
        self, network: nn.Module, objective: TrainingObjective, settings: TrainingSettings, folder: Path
    ) -> None:
        self.network, self.objective, self.settings, self.folder = network, objective, settings, folder
        self.device = next(network.parameters()).device
        self.bfloat16 = has_bfloat16(self.device) if settings.bfloat16 is None else settings.bfloat16
        self.average = averaged_model(network)
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=settings.learning_rate,
            betas=(0.95, 0.999),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate_factor)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.order = torch.empty(0, dtype=torch.long)
        self.step = self.saved = 0

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
            OtherRunError: the folder holds another run; nothing is written then.
            ResumeError: its state cannot be read.
            TrainingDiverged: the loss or the weights are no longer finite; what was saved before stays.
        """
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
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
        """Copy the network with averaged weights, in evaluation mode."""
        return copy.deepcopy(self.average.module).eval()

    @torch.no_grad()
    def validation_loss(self, network: nn.Module) -> float:
        """Measure the loss on up to eight batches of validation examples, with the same noise every time."""
        generator = torch.Generator().manual_seed(1)
        order = torch.randperm(self.objective.held_out, generator=generator)
        picks = torch.split(order, self.settings.batch_size)[:8]
        with self._precision():
            losses = [self.objective.validation(network, index, generator) for index in picks]
        return float(torch.stack(losses).mean())

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _batch(self) -> Tensor:
        size = min(self.settings.batch_size, self.objective.examples)
        if len(self.order) < size:
            self.order = torch.randperm(self.objective.examples, generator=self.generator)
        index, self.order = self.order[:size], self.order[size:]
        return index

    def _step(self) -> float:
        self.network.train()
        with self._precision():
            loss = self.objective.loss(self.network, self._batch(), self.generator)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.average.update_parameters(self.network)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}")
        return value

    def _diverged(self, what: str) -> TrainingDiverged:
        last = f"the last good weights are those of step {self.saved}, in {self.folder}"
        return TrainingDiverged(
            f"step {self.step}: {what}; {last if self.saved else 'no weights had been saved before'}. Choose a lower "
            f"training.learning_rate than {self.settings.learning_rate:g} and another out="
        )

    def _save(self, train_loss: float, seconds_a_step: float) -> None:
        averaged = self.averaged()
        line = {
            "step": self.step,
            "train_loss": round(train_loss, 6),
            "validation_loss": round(self.validation_loss(averaged), 6),
            "learning_rate": self.schedule.get_last_lr()[0],
            "seconds_a_step": round(seconds_a_step, 4),
        }
        if not math.isfinite(line["validation_loss"]):
            raise self._diverged(f"the validation loss is {line['validation_loss']}")
        if bad := [name for name, tensor in self.network.state_dict().items() if not tensor.isfinite().all()]:
            raise self._diverged(f"{bad[0]} is no longer finite")
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line, allow_nan=False) + "\n")
        self.objective.save(averaged, self.folder)
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
            "generator": self.generator.get_state(),
            "dropout": torch.get_rng_state(),  # layers that drop draw from torch's own generator
            "order": self.order,
        }
        with atomic_path(self.folder / STATE) as temporary:
            torch.save(state, temporary)
        self.saved = self.step

    def _resume(self) -> None:
        identity = {
            "settings": asdict(self.settings) | {"bfloat16": self.bfloat16},
            **self.objective.identity,
            "software": {
                "specpolicy": __version__,
                "source": source_digest("specpolicy.training", "specpolicy.datasets", "specpolicy.policies"),
                "torch": torch.__version__,
            },
        }
        claim_folder(self.folder, identity, name=IDENTITY, free=_FREE, traces=_TRACES)
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True, map_location=self.device)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.average.load_state_dict(state["average"])
            self.generator.set_state(state["generator"].cpu())
            torch.set_rng_state(state["dropout"].cpu())
            self.order, self.step = state["order"].cpu(), int(state["step"])
        except Exception as error:
            raise ResumeError(f"{path} cannot be read ({error}); delete it to train from the start") from error
        self.saved = self.step


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 is faster than float32 on ``device``."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux: float32 is never wrong
        return ""
