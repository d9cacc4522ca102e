"""Recorded profiles, and ``specpolicy tune`` from observations to a sampler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hydra.utils import instantiate

from specpolicy import BlockVerifier, FreeDrafter, ReflectionVerifier, ReverseProcess, SpeculativeSampler, samplers
from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.config import compose
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.linear_chain import max_draft_lengths
from specpolicy.speculative.verifiers import Verifier
from specpolicy.tuning.acceptance import record_profile
from specpolicy.tuning.store import WindowsError, windows_path

_ACCOUNT = ("start", "accepted")


@pytest.mark.parametrize("verifier", [ReflectionVerifier(), BlockVerifier()])
def test_a_profile_is_what_the_rounds_were(verifier: Verifier) -> None:
    process = ReverseProcess.from_scheduler(DDPMScheduler(100, beta_schedule="squaredcos_cap_v2"), 20)
    sampler = SpeculativeSampler(process, FreeDrafter(), verifier)
    results: list[Any] = []

    def run(listening: SpeculativeSampler) -> Any:
        generator = torch.Generator().manual_seed(len(results))
        noise = torch.randn(30, 3, generator=generator)
        results.append(listening(lambda x, t, c: 0.3 * x, noise, generator=generator))
        return results[-1]

    profile = record_profile(sampler, run, longest=12, reach=max_draft_lengths(process), repeats=2)
    assert len(results) == 2 and profile.longest == 12
    starts, kept_by_sampler = (torch.cat([getattr(each, name).flatten() for each in results]) for name in _ACCOUNT)
    start, accepted = starts[starts >= 0], kept_by_sampler[starts >= 0]
    assert torch.equal(profile.start, start) and len(torch.unique(profile.chain)) == 60
    whole = torch.zeros(60, dtype=torch.long).index_add_(0, profile.chain, profile.accepted[:, -1] + 1)
    assert (whole == 20).all(), "the rounds of each chain add up to it"
    first, second = profile.halves()
    assert not set(first.chain.tolist()) & set(second.chain.tolist())
    assert len(first.start) + len(second.start) == len(start)
    assert torch.equal(profile.accepted[:, -1], accepted), "the longest window is the one that was played"
    assert (profile.accepted <= torch.arange(1, 13)).all()
    assert (profile.accepted <= profile.reach[profile.start, None]).all()
    if isinstance(verifier, ReflectionVerifier):  # step by step, a shorter window is the beginning of a longer one
        kept = torch.minimum(accepted[:, None], torch.arange(1, 13))
        assert torch.equal(profile.accepted, kept)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = PolicyConfig(
        task="reach",
        observations={"position": 2, "goal": 2},
        action_dim=2,
        network={"name": "unet1d", "channels": [8], "timestep_dim": 8},
        scheduler={"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"},
    )
    DiffusionPolicy(config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def observations(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "o.npz", position=rng.normal(size=(5, 2, 2)), goal=rng.normal(size=(5, 2, 2)))
    return tmp_path / "o.npz"


def test_from_observations_to_windows(checkpoint: Path, observations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    recipe = compose("rollout", ["sampler=free_block20", "sampler.window=auto"]).sampler
    with pytest.raises(WindowsError, match="specpolicy tune"):
        instantiate(recipe)(policy)
    job = [
        "tune", f"checkpoint={checkpoint}", f"observations={observations}", "sampler=free_block20", "chains=10",
        "repeats=3", "calls=3", "longest=6",
    ]  # fmt: skip
    assert main(job) == 0
    said = capsys.readouterr().out
    assert "expected: " in said and "measured, tuned: " in said and "sampler.window=auto" in said
    content = json.loads(windows_path(checkpoint, "cpu").read_text())
    entry = content["samplers"]["K=20, FreeDrafter, BlockVerifier, initial guess none"]
    assert len(entry["windows"]) == 20 and entry["expected_ms"] <= entry["best_constant"]["expected_ms"]
    assert entry["measured"]["tuned"]["calls"] == 3 and "constant 12" in entry["measured"]
    assert str(checkpoint.parent) not in json.dumps(content), "no paths of this machine"
    sampler = instantiate(recipe)(policy)
    assert sampler.window == entry["windows"] and sampler.exact


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sampler=ddpm"], "has no window to tune"),
        (["sampler=linear_block"], "`specpolicy calibrate checkpoint="),
        (["sampler=free_block", "longest=0"], "longest=0"),
        (["sampler=free_block", "chains=1"], "chains=1"),
        (["sampler=free_block", "repeats=0"], "repeats=0"),
    ],
)
def test_mistakes(
    checkpoint: Path, observations: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    job = ["tune", f"checkpoint={checkpoint}", f"observations={observations}", *overrides]
    assert main(job) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and len(error.splitlines()) == 1


def test_other_words_are_no_window(checkpoint: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="window='wide'; give a number of steps, one for each step, or auto"):
        samplers.speculative(policy, 20, FreeDrafter(), BlockVerifier(), "wide")
    with pytest.raises(ValueError, match="loaded from one"):
        samplers.speculative(policy.scheduler, 20, FreeDrafter(), BlockVerifier(), "auto")
