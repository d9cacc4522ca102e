"""The command line: whole jobs, and one-line errors that lose nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.config import ConfigError, available, compose, parse_seeds, split_list_override
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy

SAMPLERS = ["asd", "ddim10", "ddim5", "ddpm", "ddpm20", "free_block", "free_block20", "free_reflection", "frozen_block"]
SAMPLERS += ["linear_block", "linear_block20"]
SHIPPED = Path(__file__).parents[1] / "checkpoints" / "square"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained policy with the shape of the Square task."""
    torch.manual_seed(0)
    cfg = compose("rollout", [])
    config = PolicyConfig(
        task="square",
        observations=dict(cfg.task.observations),
        action_dim=7,
        network={"name": "unet1d", "channels": [8, 8], "timestep_dim": 8},
        scheduler={"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"},
    )
    DiffusionPolicy(config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_every_sampler_of_the_configs_can_be_made() -> None:
    from hydra.utils import instantiate

    assert set(SAMPLERS) <= set(available("sampler"))
    policy = DiffusionPolicy.from_pretrained(SHIPPED)
    network = {"name": "transformer", "width": 8, "layers": 1, "heads": 1}
    tokens = DiffusionPolicy(replace(policy.config, network=network))
    with_a_draft = DiffusionPolicy.from_pretrained(SHIPPED.parent / "tool_hang")
    wanted = {"specdiff": tokens, "asdsv_slow": with_a_draft, "asdsv_fast": with_a_draft}
    for name in available("sampler"):
        make = instantiate(compose("rollout", [f"sampler={name}"]).sampler)
        sampler = make(wanted.get(name, policy))
        assert sampler.exact == (not name.startswith(("ddim", "specdiff", "asdsv"))), name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rollout", "sampler=warp"], "unknown sampler 'warp'; known: asd, asdsv_fast, asdsv_slow, auto, ddim10"),
        (["rollout", "task=juggling"], "unknown task 'juggling'; known: "),
        (["rollout", "colour=red"], "colour"),
        (["rollout", "square"], "write name=value"),
        (["rollout", "checkpoint=/nowhere"], "no checkpoint at /nowhere"),
        (["rollout", "sampler=[]"], "names nothing"),
        (["train", "dataset=/nowhere.hdf5", "out=/tmp/never"], "no demonstrations at /nowhere.hdf5"),
    ],
)
def test_mistakes_are_answered_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(arguments) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seeds=5:5", "at least one seed"),
        ("sampler.window=0", "draft at least 1 step"),
        ("sampler.num_inference_steps=0", "at least 1"),
        ("sampler.drafter._target_=specpolicy.Nothing", "specpolicy.Nothing"),
    ],
)
def test_bad_values(capsys: pytest.CaptureFixture[str], checkpoint: Path, override: str, says: str) -> None:
    assert main(["rollout", f"checkpoint={checkpoint}", override]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_errors_that_are_not_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    def fail(path: Path, device: str, task: str) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr("specpolicy.evaluation.comparison.load_policy", fail)
    with pytest.raises(OSError, match="disk on fire"):
        main(["rollout", f"checkpoint={checkpoint}"])


def test_a_checkpoint_of_another_task_is_refused(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"task": "transport"}))
    assert main(["rollout", f"checkpoint={checkpoint}"]) == EXIT_USER_ERROR
    assert "is of task 'transport', not 'square'" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("robosuite") is None, reason="needs the simulator: pip install 'specpolicy[sim]'")
def test_rollout_from_end_to_end(capfd: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    job = [
        "rollout", "task=square", f"checkpoint={checkpoint}", "sampler=[ddpm20,ddim2,free_block20]", "seeds=0:2",
        "num_envs=2", "latency_calls=3", "video=[]", f"out={out}",
    ]  # fmt: skip
    assert main(job) == 0
    first = json.loads((out / "table.json").read_text())
    assert [(row["sampler"], row["exact"], row["episodes"]) for row in first] == [
        ("ddpm20", True, 2),
        ("ddim2", False, 2),
        ("free_block20", True, 2),
    ]
    assert first[0]["passes"] == 20 and first[1]["passes"] == 2 and 1 < first[2]["passes"] <= 20
    assert {"table.md", "latency.json", "manifest.json", "latency_against_success.png"} <= {
        p.name for p in out.iterdir()
    }
    assert "free_block20" in capfd.readouterr().out

    shards = sorted(path.name for path in out.glob("*.parquet"))
    assert main(job) == 0, "the same command again finds everything done"
    assert sorted(path.name for path in out.glob("*.parquet")) == shards
    assert json.loads((out / "table.json").read_text()) == first

    weights = checkpoint / "policy.safetensors"
    other = DiffusionPolicy.from_pretrained(checkpoint)
    other.action_normalizer.low.fill_(-0.5)
    other.save_pretrained(checkpoint)
    assert weights.exists() and main(job) == EXIT_USER_ERROR
    assert "checkpoint" in capfd.readouterr().err
    assert sorted(path.name for path in out.glob("*.parquet")) == shards, "nothing is lost"


def test_the_library_needs_no_simulator() -> None:
    code = (
        "import sys, specpolicy, specpolicy.policies, specpolicy.training, specpolicy_envs\n"
        "loaded = {'robosuite', 'mujoco', 'h5py', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_core_needs_torch_alone() -> None:
    code = (
        "import sys, specpolicy\n"
        "other = {'diffusers', 'gymnasium', 'hydra', 'specpolicy.policies', 'specpolicy.evaluation'}\n"
        "loaded = other & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seeds_and_lists() -> None:
    assert parse_seeds("3:6") == [3, 4, 5] and parse_seeds(7) == [7] and parse_seeds([4, 1]) == [4, 1]
    for wrong in ("a:b", "6:3", "x", [1, 1], [-1], "1:2:3"):
        with pytest.raises(ConfigError, match="seeds"):
            parse_seeds(wrong)  # type: ignore[arg-type]
    assert split_list_override(["sampler=[a, b]", "x=1"], "sampler") == (["a", "b"], ["x=1"])
    assert split_list_override(["x=1"], "sampler") == (None, ["x=1"])
    with pytest.raises(ConfigError, match="twice"):
        split_list_override(["sampler=a,a"], "sampler")
