"""``window="auto"`` where nobody has tuned: priced on this device and backend, kept, and as exact as any window."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from specpolicy import FreeDrafter, RecyclingDrafter, ReflectionVerifier, SpeculativeSampler, samplers
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.linear_chain import max_draft_lengths
from specpolicy.tuning import AutoWindow, WindowsError, automatic, sampler_key
from specpolicy.tuning.acceptance import AcceptanceProfile
from specpolicy.tuning.store import acceptance_path, load_acceptance, save_acceptance, windows_path
from specpolicy.tuning.tune import record_acceptance
from specpolicy.tuning.windows import choose_windows
from specpolicy.utils.digests import checkpoint_digest

STEPS = 16


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> DiffusionPolicy:
    torch.manual_seed(0)
    config = PolicyConfig(
        task="reach",
        observations={"position": 2, "goal": 2},
        action_dim=2,
        network={"name": "mlp", "width": 16, "blocks": 1},
        scheduler={"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"},
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    DiffusionPolicy(config).save_pretrained(folder)
    return DiffusionPolicy.from_pretrained(folder)


def make(policy: DiffusionPolicy, window: Any) -> SpeculativeSampler:
    return samplers.speculative(policy, STEPS, RecyclingDrafter(), ReflectionVerifier(), window)


@pytest.fixture(scope="module")
def profile(policy: DiffusionPolicy) -> AcceptanceProfile:
    """Kept beside the checkpoint, as ``calibrate`` leaves it."""
    sampler = make(policy, 1)
    cond = torch.randn(20, policy.observations.dim * policy.observations.horizon)
    recorded = record_acceptance(policy, sampler, cond, chains=20)
    before = checkpoint_digest(folder(policy))
    save_acceptance(recorded, sampler_key(sampler), folder(policy), {"observations": "random"})
    assert checkpoint_digest(folder(policy)) == before, "it is no part of the policy"
    return recorded


def folder(policy: DiffusionPolicy) -> Path:
    assert policy.folder is not None
    return policy.folder


def test_a_profile_is_kept_as_it_was(policy: DiffusionPolicy, profile: AcceptanceProfile) -> None:
    sampler = make(policy, 1)
    reach = max_draft_lengths(sampler.process)
    kept = load_acceptance(sampler_key(sampler), reach, folder(policy))
    assert kept is not None and kept.longest == profile.longest == STEPS - 1
    for name in ("start", "accepted", "chain", "reach"):
        assert torch.equal(getattr(kept, name), getattr(profile, name)), name
    assert load_acceptance("another sampler", reach, folder(policy)) is None


def test_windows_are_measured_once_and_exact(
    policy: DiffusionPolicy, profile: AcceptanceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = make(policy, "auto")
    content = json.loads(windows_path(folder(policy), "cpu").read_text())
    key = f"{sampler_key(sampler)}, PyTorch {torch.__version__}, threads {torch.get_num_threads()}"
    assert content["samplers"][key]["windows"] == sampler.window and len(content["samplers"][key]["windows"]) == STEPS
    assert set(content["samplers"][key]["pass_ms"]) == {"1", "2", "4", "8", "16"}
    monkeypatch.setattr(automatic, "price_rounds", lambda *_: pytest.fail("measured again"))
    assert make(policy, "auto").window == sampler.window
    with monkeypatch.context() as another, pytest.raises(pytest.fail.Exception, match="measured again"):
        another.setattr(torch, "__version__", "99.0")  # whose rows may have another price
        make(policy, "auto")
    noise = torch.randn(200, *policy.event_shape, generator=torch.Generator().manual_seed(1))
    cond = torch.zeros(200, policy.observations.dim * policy.observations.horizon)
    with torch.inference_mode():
        result = sampler(policy, noise, cond, torch.Generator().manual_seed(2), record=True)
    assert sampler.exact and check_exactness(sampler.process, result).smallest > 1e-3


def test_windows_follow_the_price_of_a_row(
    policy: DiffusionPolicy, profile: AcceptanceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    for row_ms in (0.0, 1.0):

        def priced(evaluate: Any, rows: Sequence[int], row_ms: float = row_ms, **_: Any) -> list[float]:
            evaluate(rows[-1])
            return [1.0 + row_ms * each for each in rows]

        monkeypatch.setattr(automatic, "measure_evaluations", priced)
        monkeypatch.setattr(automatic, "_overhead", lambda *_: 0.0)
        cost = automatic.price_rounds(policy, partial(make, policy), AutoWindow(), profile.longest)
        lengths.append(sum(choose_windows(profile, cost).windows))
    assert lengths[0] > 1.5 * lengths[1], lengths


def test_each_backend_has_windows_of_its_own(policy: DiffusionPolicy, profile: AcceptanceProfile) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    recipe = partial(
        samplers.speculative, num_inference_steps=STEPS, drafter=RecyclingDrafter(), verifier=ReflectionVerifier(),
        window="auto",
    )  # fmt: skip
    fast = samplers.compiled(policy, recipe, "openvino")
    content = json.loads(windows_path(folder(policy), "cpu").read_text())
    key = f"{sampler_key(fast.sampler)}, {AutoWindow('openvino').setting()}"
    assert f"OpenVINO {openvino.__version__.partition('-')[0]} f32, threads" in key
    assert content["samplers"][key]["windows"] == fast.sampler.window
    with pytest.raises(WindowsError, match="run `specpolicy tune"):
        samplers.compiled(policy, recipe, "plain")  # a shape for each window: only what was tuned


def test_what_is_not_known_is_said(policy: DiffusionPolicy, profile: AcceptanceProfile) -> None:
    with pytest.raises(WindowsError, match="run `specpolicy tune"):
        samplers.speculative(policy, STEPS, FreeDrafter(), ReflectionVerifier(), "auto")
    path = acceptance_path(folder(policy))
    content = json.loads(path.read_text())
    content["samplers"][sampler_key(make(policy, 1))]["start"] = [STEPS]
    whole = path.read_text()
    path.write_text(json.dumps(content))
    windows_path(folder(policy), "cpu").unlink(missing_ok=True)
    with pytest.raises(WindowsError, match=r"acceptance\.json: .* cannot be read"):
        make(policy, "auto")
    path.write_text(whole)
