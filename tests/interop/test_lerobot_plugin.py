"""The plugin that LeRobot's commands import, on a stand-in for LeRobot; tests/interop/real has the real one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import live_policies
import pytest
import torch
from live_policies import OBSERVED, STEPS, ddim

from specpolicy.interop import lerobot_plugin
from specpolicy.interop.in_place import UnsupportedPolicy

OBS = {"observation.state": torch.randn(2, STEPS, OBSERVED, generator=torch.Generator().manual_seed(3))}


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module: Any = ModuleType(lerobot_plugin.MODELING)

    class DiffusionModel(live_policies.DiffusionModel):
        pass

    class DiffusionPolicy(live_policies.DiffusionPolicy):
        def __init__(self, scheduler: Any = None, steps: int | None = None) -> None:
            super().__init__(scheduler, steps)
            self.diffusion = DiffusionModel(scheduler or live_policies.ddpm(), steps)

    module.DiffusionModel, module.DiffusionPolicy = DiffusionModel, DiffusionPolicy
    for depth in range(1, 5):
        name = ".".join(lerobot_plugin.MODELING.split(".")[:depth])
        monkeypatch.setitem(sys.modules, name, module if name == lerobot_plugin.MODELING else ModuleType(name))
    yield module


def test_every_policy_at_its_first_inference_and_one_line(lerobot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = lerobot.DiffusionModel.conditional_sample
    assert lerobot_plugin.install({}) and lerobot_plugin.install({})
    policy = lerobot.DiffusionPolicy()
    assert capsys.readouterr().err == ""
    for _ in range(9):  # three chunks of four actions
        action = policy.select_action(OBS)
    assert action.shape == (2, 2) and bool(action.isfinite().all())
    assert policy.diffusion.unet.calls < 3 * 50
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("specpolicy: LeRobot diffusion policy accelerated (same distribution): ")
    assert "100 without" in line and "SPECPOLICY_SAMPLER=off" in line
    other = lerobot.DiffusionPolicy(steps=20)
    other.select_action(OBS)
    assert other.diffusion.unet.calls < 20 and "20 without" in capsys.readouterr().err
    lerobot_plugin.uninstall()
    assert lerobot.DiffusionModel.conditional_sample is before


@pytest.mark.parametrize("word", ["off", "0", "None"])
def test_switched_off(lerobot: Any, word: str) -> None:
    before = lerobot.DiffusionModel.conditional_sample
    assert not lerobot_plugin.install({"SPECPOLICY_SAMPLER": word})
    assert lerobot.DiffusionModel.conditional_sample is before


def test_deterministic_policies_are_left_as_they_are(lerobot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lerobot_plugin.install({})
    policy = lerobot.DiffusionPolicy(ddim(), 10)
    policy.select_action(OBS)
    assert policy.diffusion.unet.calls == 10
    assert "left as it is: this policy plays 10 DDIM steps" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1 and "SPECPOLICY_CHAIN=ddpm" in said
    for _ in range(4):
        policy.select_action(OBS)
    assert policy.diffusion.unet.calls == 20 and capsys.readouterr().err == ""
    lerobot_plugin.uninstall()

    lerobot_plugin.install({"SPECPOLICY_CHAIN": "ddpm"})
    chosen = lerobot.DiffusionPolicy(ddim(), 10)
    chosen.select_action(OBS)
    assert "NOT the policy's own distribution" in capsys.readouterr().err and chosen.diffusion.unet.calls > 10


def test_samplers_by_name(lerobot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lerobot_plugin.install({"SPECPOLICY_SAMPLER": "ddim5"})
    lerobot.DiffusionPolicy().select_action(OBS)
    assert "NOT the policy's own distribution): 5.0 network evaluations" in capsys.readouterr().err
    lerobot_plugin.uninstall()
    lerobot_plugin.install({"SPECPOLICY_SAMPLER": "fastest"})
    with pytest.raises(UnsupportedPolicy, match="'fastest' cannot be made for a live policy: unknown sampler"):
        lerobot.DiffusionPolicy().select_action(OBS)


def test_without_lerobot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(ImportError, match=r"expected LeRobot 0\.4 to 0\.6 beside specpolicy: pip install"):
        lerobot_plugin.install({})
