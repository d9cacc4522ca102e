"""The cells of an experiment: executor × sampler × charged latency."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specpolicy.control.executors import Executor

from .latencies import Charge


@dataclass(frozen=True)
class Cell:
    """One controller: a sampler, an executor, and what an inference is said to cost.

    Attributes:
        executor_name, executor: how it lives with the latency.
        sampler: name of what computes the chunks.
        charge: the latency, whatever the sampler takes.
        settings: of the executor, for the record.
    """

    executor_name: str
    executor: Executor
    sampler: str
    charge: Charge
    settings: Any = None

    @property
    def name(self) -> str:
        """Identifies the cell in a results folder."""
        return f"{self.executor_name}, {self.sampler}, {self.charge.label}"

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return re.sub(r"[^\w.+-]+", "-", self.name.replace("~", "about-"))

    def recipe(self, exact: bool, sampler_recipe: Any) -> dict[str, Any]:
        """What a results folder remembers of the cell."""
        return {
            "exact": exact,
            "recipe": sampler_recipe,
            "sampler": self.sampler,
            "executor": {"name": self.executor_name, "settings": self.settings or repr(self.executor)},
            "charged": self.charge.description,
        }


def cross(
    executors: Mapping[str, tuple[Executor, Any]], charges: Mapping[str, Sequence[Charge]], any_latency: bool = True
) -> list[Cell]:
    """All combinations, executor by executor within a sampler.

    Args:
        executors: by name, with their settings for the record.
        charges: for each sampler what is charged.
        any_latency: where the world waits, the latency changes nothing but the account's times: run such executors at
            the first charge only.
    """
    return [
        Cell(name, executor, sampler, charge, settings)
        for sampler, offered in charges.items()
        for name, (executor, settings) in executors.items()
        for charge in (offered[:1] if any_latency and executor.rules.world_waits else offered)
    ]
