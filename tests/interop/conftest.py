"""Fixtures of the pipelines' tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from specpolicy import SampleResult
from specpolicy.interop.diffusers.families import PipelineChain


@pytest.fixture
def replay(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Any, PipelineChain, SampleResult, Callable[[], Tensor]], Tensor]:
    """Run a stock pipeline with the very noises that an accelerated one has used.

    If network, guidance, schedule and order of steps are the same, so are the images.
    """

    def run(scheduler: Any, chain: PipelineChain, account: SampleResult, call: Callable[[], Tensor]) -> Tensor:
        states, x0, process = account.trajectory, account.x0, chain.process
        assert states is not None and x0 is not None
        noises = []
        for k in range(process.num_steps):
            if process.sigma[k] > 0:
                mean = process.a[k] * states[k].double() + process.b[k] * x0[k].double()
                noises.append((states[k + 1].double() - mean) / process.sigma[k])

        def recorded(shape: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
            noise = noises.pop(0) if noises else torch.zeros(account.sample.shape)  # some draw for steps without noise
            return noise.repeat(shape[0] // len(noise), 1, 1, 1).to(dtype or torch.float32)

        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "randn_tensor", recorded)
        answer = call()
        assert not noises, "one noise a step"
        return answer

    return run
