"""Observation in, chunk out; checkpoints that come back as they went, or say why not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import specpolicy
from specpolicy import FreeDrafter, ReverseProcess, SequentialSampler, SpeculativeSampler
from specpolicy.policies.checkpoint import CheckpointError
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.mlp import ResidualMlp
from specpolicy.policies.networks.unet1d import ConditionalUnet1d
from specpolicy.policies.normalizer import MinMaxNormalizer
from specpolicy.policies.observations import ObservationError

SCHEDULER = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}


def small_policy(**changes: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    config = {
        "task": "square",
        "observations": {"object": 3, "eef": 2},
        "action_dim": 4,
        "network": {"name": "unet1d", "channels": [8, 16], "timestep_dim": 8},
        "scheduler": SCHEDULER,
    }
    return DiffusionPolicy(PolicyConfig(**(config | changes))).eval()  # type: ignore[arg-type]


def observation(batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"object": rng.normal(size=(batch, 2, 3)), "eef": rng.normal(size=(batch, 2, 2)), "unused": np.zeros(7)}


def test_act_returns_the_executed_part_in_data_units() -> None:
    policy = small_policy()
    policy.action_normalizer = MinMaxNormalizer(torch.zeros(4), torch.tensor([2.0, 4.0, 6.0, 8.0]))
    sampler = SequentialSampler(ReverseProcess.from_scheduler(policy.scheduler, 20))
    chunk = policy.predict_action(observation(3), sampler, [torch.Generator().manual_seed(i) for i in range(3)])
    assert chunk.actions.shape == (3, 8, 4) and chunk.prediction.shape == (3, 16, 4)
    np.testing.assert_array_equal(chunk.actions, chunk.prediction[:, 1:9])
    expected = (chunk.result.sample.numpy() + 1) / 2 * np.array([2.0, 4.0, 6.0, 8.0])
    np.testing.assert_allclose(chunk.prediction, expected, rtol=1e-5, atol=1e-5)
    alone = policy.predict_action(
        {k: v[1:2] for k, v in observation(3).items()}, sampler, [torch.Generator().manual_seed(1)]
    )
    np.testing.assert_allclose(alone.actions[0], chunk.actions[1], rtol=1e-4, atol=1e-4)


def test_speculation_drives_a_policy() -> None:
    policy = small_policy()
    sampler = SpeculativeSampler(ReverseProcess.from_scheduler(policy.scheduler, 20), FreeDrafter(), window=8)
    result = policy.predict_action(observation(2), sampler, torch.Generator().manual_seed(0)).result
    assert (result.passes <= 21).all() and torch.isfinite(result.sample).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"object": None}, "lacks"),
        ({"object": np.zeros((2, 2, 5))}, r"expected \(batch, 2 steps, 3\)"),
        ({"object": np.zeros((2, 3))}, "shape"),
        ({"object": np.full((2, 2, 3), np.nan)}, "NaN"),
        ({"eef": np.full((2, 2, 2), np.inf)}, "infinity"),
        ({"eef": np.zeros((1, 2, 2))}, "different batch sizes"),
        ({"eef": np.full((2, 2, 2), 1e39)}, r"observation\['eef'\] contains NaN, infinity or values beyond float32"),
        ({"eef": np.full((2, 2, 2), "0.5")}, r"observation\['eef'\] holds text; expected numbers"),
        ({"eef": np.full((2, 2, 2), object())}, r"observation\['eef'\] holds values of type object"),
        ({"eef": np.full((2, 2, 2), 1j)}, r"observation\['eef'\] holds values of type complex128"),
        ({"eef": [[[1.0, 2.0], [3.0]]]}, r"observation\['eef'\] is a list and no array of numbers"),
        ({"eef": "open"}, r"observation\['eef'\] holds text"),
        ({"eef": object()}, r"observation\['eef'\] holds values of type object"),
    ],
)
def test_bad_observations(change: dict[str, np.ndarray | None], says: str) -> None:
    policy = small_policy()
    changed = {k: v for k, v in (observation(2) | change).items() if v is not None}  # type: ignore[operator]
    with pytest.raises(ObservationError, match=says):
        policy.encode(changed)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32, np.bool_, list, torch.Tensor])
def test_whatever_holds_numbers_is_an_observation(kind: Any) -> None:
    policy, given = small_policy(), observation(2)
    rounded = {key: np.rint(given[key]).clip(0, 1) for key in ("object", "eef")}
    if kind is list:
        other: dict[str, Any] = {key: value.tolist() for key, value in rounded.items()}
    elif kind is torch.Tensor:
        other = {key: torch.from_numpy(value).requires_grad_() for key, value in rounded.items()}
    else:
        other = {key: value.astype(kind) for key, value in rounded.items()}
    with torch.no_grad():
        assert torch.equal(policy.encode(other), policy.encode(rounded))


def test_an_observation_is_a_mapping() -> None:
    with pytest.raises(ObservationError, match="the observation is a list; expected a mapping"):
        small_policy().observations.check([1.0])


def test_normalizer_round_trip_and_still_coordinates() -> None:
    data = torch.tensor([[0.0, 5.0, 1.0], [10.0, 5.0, 3.0]])
    normalizer = MinMaxNormalizer.fit(data)
    scaled = normalizer.normalize(data)
    torch.testing.assert_close(scaled, torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]]))
    torch.testing.assert_close(normalizer.unnormalize(scaled), data)


def test_network_is_differentiable_everywhere_and_checks_the_length() -> None:
    network = ConditionalUnet1d(action_dim=3, cond_dim=5, channels=(8, 16, 16), timestep_dim=8)
    out = network(torch.randn(2, 16, 3), torch.tensor([0, 99]), torch.randn(2, 5))
    assert out.shape == (2, 16, 3)
    out.square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    with pytest.raises(ValueError, match="divisible by 4"):
        network(torch.randn(2, 10, 3), torch.tensor([0, 99]), torch.randn(2, 5))
    with pytest.raises(ValueError, match="multiple of groups"):
        ConditionalUnet1d(3, 5, channels=(12,))
    with pytest.raises(ValueError, match="divisible by 4"):
        small_policy(network={"name": "unet1d", "channels": [8, 8, 8]}, horizon=10)


def test_residual_mlp_is_differentiable_everywhere_and_checks_the_shape() -> None:
    network = ResidualMlp(action_dim=3, cond_dim=5, horizon=10, width=16, embed=8, timestep_dim=8)
    x, timestep, cond = torch.randn(2, 10, 3), torch.tensor([0, 99]), torch.randn(2, 5)
    out = network(x, timestep, cond)
    assert out.shape == (2, 10, 3)
    out.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    for changed in ((x + 1, timestep, cond), (x, timestep + 7, cond), (x, timestep, cond + 1)):
        assert not torch.allclose(network(*changed), out)
    with pytest.raises(ValueError, match=r"built for \(10, 3\)"):
        network(torch.randn(2, 16, 3), timestep, cond)


def test_half_the_space(tmp_path: Path) -> None:
    policy = small_policy()
    policy.observation_normalizer = MinMaxNormalizer(torch.full((5,), 0.12345678), torch.full((5,), 3.0))
    policy.save_pretrained(tmp_path / "whole")
    policy.save_pretrained(tmp_path / "half", half=True)
    sizes = [(tmp_path / name / "policy.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.65 * sizes[0]
    back = DiffusionPolicy.from_pretrained(tmp_path / "half")
    for name, tensor in policy.state_dict().items():
        read = back.state_dict()[name]
        assert read.dtype == tensor.dtype == torch.float32
        torch.testing.assert_close(read, tensor, rtol=5e-4, atol=1e-6)
    assert torch.equal(back.observation_normalizer.low, policy.observation_normalizer.low)


def test_a_policy_may_be_a_perceptron(tmp_path: Path) -> None:
    policy = small_policy(
        network={"name": "mlp", "width": 16, "embed": 8, "timestep_dim": 8},
        scheduler={**SCHEDULER, "prediction_type": "v_prediction"},
    )
    sampler = SpeculativeSampler(ReverseProcess.from_scheduler(policy.scheduler, 20), FreeDrafter(), window=8)
    policy.save_pretrained(tmp_path)
    chunks = [
        each.predict_action(observation(2), sampler, torch.Generator().manual_seed(0)).actions
        for each in (policy, DiffusionPolicy.from_pretrained(tmp_path))
    ]
    np.testing.assert_array_equal(*chunks)


def test_standard_network_has_the_published_size() -> None:
    with torch.device("meta"):
        network = ConditionalUnet1d(7, 46, channels=(256, 512, 1024), timestep_dim=256)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(65.9e6, rel=0.01)


# ---- checkpoints


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    policy = small_policy()
    policy.observation_normalizer = MinMaxNormalizer(torch.arange(5.0), torch.arange(5.0) + 3)
    policy.save_pretrained(tmp_path / "p")
    back = DiffusionPolicy.from_pretrained(tmp_path / "p")
    assert back.config == policy.config and not back.training
    for name, tensor in policy.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["config.json", "policy.safetensors"]


def test_names_at_package_level(tmp_path: Path) -> None:
    assert specpolicy.DiffusionPolicy is DiffusionPolicy and specpolicy.CheckpointError is CheckpointError
    small_policy().save_pretrained(tmp_path)
    assert specpolicy.load_policy(str(tmp_path)).config == DiffusionPolicy.from_pretrained(tmp_path).config
    assert {"DiffusionPolicy", "load_policy", "SpeculativeSampler"} <= set(dir(specpolicy))
    with pytest.raises(AttributeError, match="no attribute 'load_polcy'"):
        specpolicy.load_polcy  # noqa: B018
    script = "import sys, specpolicy; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_checkpoint_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        DiffusionPolicy.from_pretrained(tmp_path / "nowhere")


def test_checkpoint_truncated(tmp_path: Path) -> None:
    small_policy().save_pretrained(tmp_path)
    weights = tmp_path / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        DiffusionPolicy.from_pretrained(tmp_path)


def test_checkpoint_of_another_task(tmp_path: Path) -> None:
    small_policy().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="of task 'square', not 'transport'"):
        DiffusionPolicy.from_pretrained(tmp_path, task="transport")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c | {"action_dim": 5}, "does not fit"),
        (lambda c: c | {"colour": 1}, r"unknown keys \['colour'\]"),
        (lambda c: {k: v for k, v in c.items() if k != "task"}, r"missing keys \['task'\]"),
        (lambda c: c | {"n_action_steps": 16}, "at most 15"),
    ],
)
def test_checkpoint_with_a_wrong_config(tmp_path: Path, edit, says: str) -> None:  # type: ignore[no-untyped-def]
    small_policy().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=says):
        DiffusionPolicy.from_pretrained(tmp_path)


def test_checkpoint_with_broken_json(tmp_path: Path) -> None:
    small_policy().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        DiffusionPolicy.from_pretrained(tmp_path)


def test_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"network\.name='resnet': expected one of mlp, transformer, unet1d"):
        small_policy(network={"name": "resnet"})


def test_tensors_of_any_precision_are_observations() -> None:
    policy, given = small_policy(), observation(2)
    sampler = SequentialSampler(ReverseProcess.from_scheduler(policy.scheduler, 20))
    tensors = {key: torch.tensor(part).bfloat16() for key, part in given.items()}
    rounded = {key: part.float().numpy() for key, part in tensors.items()}
    chunks = [policy.predict_action(each, sampler, torch.Generator().manual_seed(0)) for each in (tensors, rounded)]
    np.testing.assert_array_equal(chunks[0].actions, chunks[1].actions)


@pytest.mark.parametrize(
    ("part", "says"),
    [(None, "holds nothing (None); expected numbers"), ("text", "holds text"), (b"bytes", "holds text")],
)
def test_parts_that_are_no_numbers_are_named_before_their_shape(part: Any, says: str) -> None:
    with pytest.raises(ObservationError, match=re.escape(f"observation['eef'] {says}")):
        small_policy().encode(observation(1) | {"eef": part})


@pytest.mark.parametrize("sampler", [None, "ddpm"])
def test_a_sampler_that_is_none(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users call it: without checks of annotations
    with pytest.raises(TypeError, match=r"sampler is a \w+; make one, e.g. with specpolicy.samplers.load"):
        small_policy().predict_action(observation(1), sampler)


@pytest.mark.parametrize("path", [3, None, "x" * 5000, "nul\0inside"])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(CheckpointError, match="checkpoint"):
        specpolicy.load_policy(path)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_devices_that_are_not_there(tmp_path: Path, device: str) -> None:
    small_policy().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"device={device}: "):
        specpolicy.load_policy(tmp_path, device=device)
