"""Damaged, hostile and unfitting checkpoints are one line that names the file, before anything large is allocated."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from specpolicy.policies.checkpoint import CheckpointError, weights_digest
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy


def made(network: dict[str, Any]) -> DiffusionPolicy:
    torch.manual_seed(0)
    scheduler = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"}
    return DiffusionPolicy(PolicyConfig("toy", {"object": 3, "eef": 2}, 4, network=network, scheduler=scheduler))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    made({"name": "mlp", "width": 16, "embed": 8, "timestep_dim": 8, "blocks": 1}).save_pretrained(folder)
    return folder


def copied(source: Path, target: Path, **config: Any) -> Path:
    target.mkdir()
    (target / "policy.safetensors").write_bytes((source / "policy.safetensors").read_bytes())
    (target / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | config))
    return target


@pytest.mark.parametrize("half", [False, True])
def test_no_flipped_bit_of_the_weights_is_read(tmp_path: Path, saved: Path, half: bool) -> None:
    folder = copied(saved, tmp_path / "p")
    if half:
        DiffusionPolicy.from_pretrained(saved).save_pretrained(folder, half=True)
    path, draw = folder / "policy.safetensors", random.Random(0)
    whole = path.read_bytes()
    DiffusionPolicy.from_pretrained(folder)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*draw.sample(range(8 * header), 100), *draw.sample(range(8 * header, 8 * len(whole)), 100)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"policy\.safetensors"):
            DiffusionPolicy.from_pretrained(folder)


def test_every_truncation_is_damage(tmp_path: Path, saved: Path) -> None:
    folder = copied(saved, tmp_path / "p")
    path = folder / "policy.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"policy\.safetensors is damaged or truncated"):
            DiffusionPolicy.from_pretrained(folder)


NETWORK = {"name": "mlp", "width": 16, "embed": 8, "timestep_dim": 8, "blocks": 1}
SCHEDULER = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": 3}, "task=3"),
        ({"task": ""}, "task=''"),
        ({"observations": {}}, "observations"),
        ({"observations": [3, 2]}, r"observations=\[3, 2\]"),
        ({"observations": {"object": "3", "eef": 2}}, "observations.object='3'"),
        ({"observations": {"object": -3, "eef": 2}}, "observations.object=-3"),
        ({"observations": {"object": 10**9, "eef": 2}}, "observations.object=1000000000"),
        ({"observations": {"object": 4, "eef": 2}}, "does not fit"),
        ({"action_dim": 0}, "action_dim=0"),
        ({"action_dim": "4"}, "action_dim='4'"),
        ({"action_dim": 4.0}, "action_dim=4.0"),
        ({"action_dim": 5}, "does not fit"),
        ({"n_obs_steps": True}, "n_obs_steps=True"),
        ({"n_obs_steps": None}, "n_obs_steps=None"),
        ({"horizon": 10**9}, "horizon=1000000000"),
        ({"n_action_steps": 16}, "at most 15"),
        ({"network": None}, "network=None"),
        ({"network": {}}, "network.name=None"),
        ({"network": {"name": ["mlp"]}}, "network.name"),
        ({"network": NETWORK | {"depth": 3}}, "network.depth: mlp has no such argument"),
        ({"network": NETWORK | {"horizon": 3}}, "network.horizon: mlp has no such argument"),
        ({"network": NETWORK | {"width": 20000}}, "does not fit"),
        ({"network": NETWORK | {"width": 10**9}}, "network.width=1000000000"),
        ({"network": NETWORK | {"width": "16"}}, "describes no policy"),
        ({"network": NETWORK | {"width": {}}}, r"network.width=\{\}"),
        ({"network": NETWORK | {"blocks": 10**6}}, "network.blocks is more than"),
        ({"network": NETWORK | {"blocks": -1}}, "policy"),
        ({"network": NETWORK | {"timestep_dim": 7}}, "policy|fit"),
        ({"network": {"name": "unet1d", "channels": [8] * 1000}}, "network.channels has 1000 entries"),
        ({"network": {"name": "unet1d", "channels": [[8]]}}, "network.channels"),
        ({"network": {"name": "unet1d", "channels": [0, 0]}}, "policy|fit"),
        ({"network": {"name": "unet1d", "groups": 0}}, "describes no policy"),
        ({"scheduler": []}, r"scheduler=\[\]"),
        ({"scheduler": SCHEDULER | {"beta_schedule": "none"}}, "describes no policy"),
        ({"scheduler": SCHEDULER | {"beta_scedule": "linear"}}, "scheduler.beta_scedule is no setting"),
        ({"scheduler": SCHEDULER | {"num_train_timesteps": 10**12}}, "scheduler.num_train_timesteps"),
        ({"scheduler": SCHEDULER | {"num_train_timesteps": -5}}, "describes no policy|noise levels"),
        ({"scheduler": SCHEDULER | {"num_train_timesteps": "20"}}, "describes no policy"),
        ({"scheduler": SCHEDULER | {"beta_start": "x", "beta_schedule": "linear"}}, "describes no policy"),
        ({"scheduler": SCHEDULER | {"beta_end": 7.0, "beta_schedule": "linear"}}, "noise levels"),
        ({"scheduler": SCHEDULER | {"trained_betas": [float("nan")] * 20}}, "scheduler.trained_betas"),
        ({"scheduler": SCHEDULER | {"prediction_type": "flow"}}, "scheduler.prediction_type='flow'"),
        ({"scheduler": SCHEDULER | {"variance_type": "learned_range"}}, "variance_type='learned_range'"),
        ({"cameras": {"front": {}}}, "cameras"),
        ({"cameras": {"eef": 3}}, "cameras.eef=3"),
        ({"cameras": {"eef": {"shape": [3, 8, 8], "layout": "WHC"}}}, "layout"),
        ({"cameras": {"eef": {"shape": [3, 10**12, 8]}}}, "cameras.eef.shape"),
        ({"cameras": {"eef": {"shape": [3, 8, 8], "backbone": "vgg"}}}, "cameras.eef|describes"),
        ({"colour": 1}, r"unknown keys \['colour'\]"),
    ],
)
def test_a_config_that_does_not_fit(tmp_path: Path, saved: Path, change: dict[str, Any], says: str) -> None:
    folder = copied(saved, tmp_path / "p", **change)
    with pytest.raises(CheckpointError, match=says) as error:
        DiffusionPolicy.from_pretrained(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "3", '"text"', "[" * 100_000, '{"task": NaN}', "\udcff", '{"task": "toy"}']
)
def test_config_files_that_are_none(tmp_path: Path, saved: Path, content: str) -> None:
    folder = copied(saved, tmp_path / "p")
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        DiffusionPolicy.from_pretrained(folder)


def test_what_does_not_fit_is_not_allocated_first(tmp_path: Path, saved: Path) -> None:
    """A network of width 20000 takes 9 GB; its checkpoint is refused within a gigabyte."""
    folder = copied(saved, tmp_path / "p", network=NETWORK | {"width": 20000, "blocks": 3})
    script = (
        "import resource, sys, torch, diffusers\n"
        "from specpolicy.policies.checkpoint import CheckpointError\n"
        "from specpolicy.policies.diffusion_policy import DiffusionPolicy\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    DiffusionPolicy.from_pretrained(sys.argv[1])\nexcept CheckpointError:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**20  # kibibytes


def test_weights_that_are_not_finite_or_none(tmp_path: Path, saved: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(saved)
    with torch.no_grad():
        policy.action_normalizer.low[0] = float("nan")
    policy.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"action_normalizer\.low contains NaN or infinity"):
        DiffusionPolicy.from_pretrained(tmp_path)


def test_the_digest_is_of_names_types_shapes_and_content() -> None:
    first = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 1.0000001)},
    ]
    digests = [weights_digest(each) for each in (first, *others)]
    assert len(set(digests)) == 5 and weights_digest(dict(reversed(first.items()))) == digests[0]


# ---- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_policies_in_other_precisions_are_played(dtype: torch.dtype) -> None:
    from specpolicy import FreeDrafter, ReverseProcess, SequentialSampler, SpeculativeSampler

    policy = made(NETWORK).eval()
    rng = np.random.default_rng(0)
    observation = {"object": rng.normal(size=(2, 2, 3)), "eef": rng.normal(size=(2, 2, 2))}
    process = ReverseProcess.from_scheduler(policy.scheduler, 20)
    for sampler in (SequentialSampler(process), SpeculativeSampler(process, FreeDrafter(), window=8)):
        whole = policy.float().predict_action(observation, sampler, torch.Generator().manual_seed(0))
        other = policy.to(dtype).predict_action(observation, sampler, torch.Generator().manual_seed(0))
        assert other.actions.dtype == np.float32 and np.isfinite(other.actions).all()
        if isinstance(sampler, SequentialSampler):
            np.testing.assert_allclose(other.actions, whole.actions, atol=0.1)
    assert policy.action_normalizer.low.dtype in (torch.float32, torch.float64)


def test_weights_without_a_digest_are_not_believed(tmp_path: Path, saved: Path) -> None:
    folder = copied(saved, tmp_path / "p")
    save_file(load_file(folder / "policy.safetensors"), folder / "policy.safetensors")
    with pytest.raises(CheckpointError, match=r"policy\.safetensors carries no digest of its weights"):
        DiffusionPolicy.from_pretrained(folder)


@pytest.mark.parametrize("task", ["pusht", "square", "square_transformer", "tool_hang", "transport"])
def test_shipped_policies_are_stored_in_half_precision(task: str) -> None:
    folder = Path(__file__).parents[2] / "checkpoints" / task
    with safe_open(folder / "policy.safetensors", framework="pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    assert {kind for name, kind in kinds.items() if name.startswith("network.")} == {"F16"}
    assert {kind for name, kind in kinds.items() if not name.startswith("network.")} == {"F32"}
    assert all(
        tensor.dtype == torch.float32 for tensor in DiffusionPolicy.from_pretrained(folder).state_dict().values()
    )
