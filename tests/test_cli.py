"""The command line: whole jobs, and one-line errors that lose nothing."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from specpolicy.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, main
from specpolicy.commands import COMMANDS
from specpolicy.config import ConfigError, available, compose, parse_seeds, split_list_override
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.utils.diffusers_schedulers import DDIMScheduler, DDPMScheduler, scheduler_from_config

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
        assert sampler.exact == (not name.startswith(("ddim", "specdiff", "asdsv", "warm"))), name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rollout", "sampler=warp"], "unknown sampler 'warp'; known: analytic10, analytic10_recycled, asd"),
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
        ("sampler.num_inference_steps=0", "whole number from 1 on"),
        ("sampler.drafter._target_=specpolicy.Nothing", "specpolicy.Nothing"),
    ],
)
def test_bad_values(capsys: pytest.CaptureFixture[str], checkpoint: Path, override: str, says: str) -> None:
    assert main(["rollout", f"checkpoint={checkpoint}", override]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("colour=red", "unknown option 'colour' of rollout; Options: anytime, block_size, checkpoint"),
        ("sampler.widnow=4", "did you mean 'window'?"),
        ("out=${nope}", "'nope' not found"),
        ("checkpoint=runs/a=b(c", "'checkpoint=\"runs/a=b(c\"'"),
        ("out=a#b", "'out=\"a#b\"'"),
        ("out=a,b", "'out=\"a,b\"'"),
        ("out=größe/x", "'out=\"größe/x\"'"),
        ("device=gpu", "device=gpu: unknown; use cpu, cuda, cuda:N or mps"),
        ("device=cuda:77", "device=cuda:77: "),
    ],
)
@pytest.mark.parametrize("command", ["rollout", "serve", "train"])
def test_what_cannot_be_composed_is_said_in_our_words(
    capsys: pytest.CaptureFixture[str], command: str, override: str, says: str
) -> None:
    if command != "rollout" and override.startswith(("colour", "sampler")):
        pytest.skip("the message lists the options of rollout")
    name = {"serve": "checkpoint", "train": "out"}.get(command, "")
    asked = override.replace("out=", f"{name}=").replace("checkpoint=", f"{name}=") if name else override
    said = says.replace("out=", f"{name}=").replace("checkpoint=", f"{name}=") if name else says
    assert main([command, asked]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert "HYDRA_FULL_ERROR" not in error and "use +" not in error


def test_quoted_values_are_read(tmp_path: Path) -> None:
    path = f"{tmp_path}/a=b (größe, #2)"
    assert compose("rollout", [f'out="{path}"']).out == path


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_an_out_that_is_a_file_is_named(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, below: str
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert main(["rollout", f"checkpoint={checkpoint}", "seeds=0:1", f"out={file}{below}"]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert f"{file}{below}" in error and "out=" in error and "Traceback" not in error
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x/part"),
            "out=/data/x: /data/x/part: the disk is full",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "out=/data/x: /data/x: permission denied"),
        (RuntimeError("Torch not compiled with CUDA enabled"), "device=cuda: Torch not compiled with CUDA enabled"),
        (MemoryError(), "out of memory"),
        (KeyError("weird"), "unexpected KeyError in json"),
    ],
)
def test_errors_of_other_libraries_become_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, says: str
) -> None:
    def fail(*_: object) -> None:
        json.loads("1", parse_int=lambda _: (_ for _ in ()).throw(error))

    monkeypatch.setattr("specpolicy.commands.run", fail)
    assert main(["rollout", "out=/data/x", "device=cuda"]) == EXIT_USER_ERROR
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert says.replace("in json", "in") in message
    assert main(["--debug", "rollout", "out=/data/x", "device=cuda"]) == EXIT_USER_ERROR
    assert "Traceback" in capsys.readouterr().err


def test_what_compiled_code_raises_is_not_our_message() -> None:
    from specpolicy.speculative.random_streams import ChainGenerators
    from specpolicy.utils.errors import explain

    numbers = ChainGenerators(None, 2, torch.device("cpu"), torch.float32)
    with pytest.raises(RuntimeError) as torchs:
        numbers.noise((-1,))
    assert explain(torchs.value).startswith("unexpected RuntimeError in specpolicy: ")
    with pytest.raises(ConfigError) as ours:
        parse_seeds("x")
    assert explain(ours.value).startswith("seeds='x'; write first:end")


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.05, 0.5, 2.0])
def test_ctrl_c_in_the_first_seconds(after_s: float) -> None:
    command = [sys.executable, "-m", "specpolicy.cli", "rollout", "seeds=0:1", "checkpoint=/nowhere"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    # the first milliseconds belong to the interpreter, which compiles our two smallest modules; site has a main, too
    assert not re.search(r"cli\.py\", line \d+, in main", error), "no traceback once our code runs"
    early = "<frozen site>" in error  # before any program runs
    assert early or process.returncode in (EXIT_INTERRUPTED, EXIT_USER_ERROR, -signal.SIGINT)


def test_help_fits_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 100
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_help_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"example:\n  specpolicy {command}" in text and "options:" in text


def test_a_checkpoint_of_another_task_is_refused(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"task": "transport"}))
    assert main(["rollout", f"checkpoint={checkpoint}"]) == EXIT_USER_ERROR
    assert "is of task 'transport', not 'square'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(find_spec("robosuite") is None, reason="needs the simulator: pip install 'specpolicy[sim]'")
def test_rollout_from_end_to_end(capfd: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    job = [
        "rollout", "task=square", f"checkpoint={checkpoint}", "sampler=[ddim2,free_block20]", "seeds=0:1",
        "num_envs=2", "latency_calls=3", "video=[]", f"out={out}",
    ]  # fmt: skip
    assert main(job) == 0
    first = json.loads((out / "table.json").read_text())
    assert [(row["sampler"], row["exact"], row["episodes"]) for row in first] == [
        ("ddim2", False, 1),
        ("free_block20", True, 1),
    ]
    assert first[0]["nfe"] == 2 and 1 < first[1]["nfe"] <= 20
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


def test_imports_stay_light() -> None:
    """Each step adds what it needs; whatever is imported early makes every start on a robot slower."""
    code = (
        "import sys, specpolicy\n"
        "def absent(*names): assert not (loaded := set(names) & set(sys.modules)), loaded\n"
        "core = 'diffusers', 'gymnasium', 'hydra', 'specpolicy.policies', 'specpolicy.evaluation'\n"
        "absent('torch', *core)\n"
        "from specpolicy.cli import main\n"
        "for wrong in ('rollout', 'sampler=warp'), ('evaluate', 'sampler=warp'), ('control', 'executor=nope'), "
        "('train', 'colour=red'), ('tune', 'sampler=warp'): assert main(wrong) == 2\n"
        "absent('torch', 'diffusers')\n"
        "specpolicy.SpeculativeSampler\n"
        "absent('diffusers', 'gymnasium', 'specpolicy.policies')\n"
        "import specpolicy.policies, specpolicy.training, specpolicy_envs\n"
        "absent('robosuite', 'mujoco', 'h5py', 'pyarrow', 'matplotlib')\n"
        "policy = specpolicy.load_policy(sys.argv[1])\n"
        "policy.predict_action(policy.observations.zeros(1), specpolicy.samplers.load('ddim2', policy))\n"
        "absent('torch._dynamo', 'sympy', 'scipy.stats')\n"
        "from diffusers.models.attention import BasicTransformerBlock\n"
        "assert BasicTransformerBlock and sys.modules['torch._dynamo'].config\n"
    )
    subprocess.run([sys.executable, "-c", code, str(SHIPPED)], check=True)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize(
    "config",
    [
        {"num_train_timesteps": 30, "prediction_type": "sample", "clip_sample_range": 2.0},
        {"num_train_timesteps": 30, "variance_type": "fixed_large", "_class_name": "DDPMScheduler"},
        DDPMScheduler(20, beta_schedule="squaredcos_cap_v2", steps_offset=1).config,
        DDIMScheduler(20, set_alpha_to_one=False).config,
    ],
)
def test_schedulers_are_made_as_by_diffusers(kind: Any, config: Any) -> None:
    expected, found = kind.from_config(config), scheduler_from_config(kind, config)
    assert dict(found.config) == dict(expected.config)
    assert torch.equal(found.alphas_cumprod, expected.alphas_cumprod)
    assert scheduler_from_config(kind, config, timestep_spacing="trailing").config.timestep_spacing == "trailing"


def test_seeds_and_lists() -> None:
    assert parse_seeds("3:6") == [3, 4, 5] and parse_seeds(7) == [7] and parse_seeds([4, 1]) == [4, 1]
    for wrong in ("a:b", "6:3", "x", [1, 1], [-1], "1:2:3", [1.7], True, 1.0, 2**63, "0:99999999999999", [None]):
        with pytest.raises(ConfigError, match="seeds"):
            parse_seeds(wrong)  # type: ignore[arg-type]
    assert split_list_override(["sampler=[a, b]", "x=1"], "sampler") == (["a", "b"], ["x=1"])
    assert split_list_override(["x=1"], "sampler") == (None, ["x=1"])
    with pytest.raises(ConfigError, match="twice"):
        split_list_override(["sampler=a,a"], "sampler")
