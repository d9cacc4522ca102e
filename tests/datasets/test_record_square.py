"""Demonstrations of the real Square expert: recorded by the command, and readable by everyone who should read them."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.config import compose
from specpolicy.datasets.demonstrations import read_demonstrations
from specpolicy.datasets.robomimic import read_attributes, read_episodes

pytestmark = pytest.mark.skipif(find_spec("robosuite") is None, reason="needs the simulator: the extra sim")
needs_robomimic = pytest.mark.skipif(
    find_spec("robomimic") is None, reason="needs robomimic: pip install --no-deps robomimic==0.3.0"
)
KEYS = dict(compose("demonstrate", ["task=square"]).task.observations)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("square") / "demonstrations.hdf5"
    job = ["demonstrate", "task=square", "episodes=2", "seed=1000", "workers=1", "valid_every=2", "model_file=true"]
    assert main([*job, f"out={path}"]) == 0
    return path


def test_training_reads_them(recorded: Path) -> None:
    data = read_demonstrations(recorded, KEYS, validation_demos=1)
    assert [d.name for d in data.train] == ["demo_0"] and [d.name for d in data.valid] == ["demo_1"]
    (demo,) = data.train
    assert demo.actions.shape == (len(demo.observations), 7) and demo.observations.shape[1] == sum(KEYS.values())
    assert np.abs(demo.actions).max() <= 1


def test_executed_actions_lead_through_the_recorded_states(recorded: Path) -> None:
    episode = next(read_episodes(recorded))
    env: Any = gymnasium.make(compose("demonstrate", []).task.env).unwrapped
    observation, _ = env.reset(seed=episode.attributes["seed"])
    for t, action in enumerate(episode.others["executed_actions"]):
        assert (env.state().astype(np.float32) == episode.others["states"][t]).all(), t
        for key, values in episode.observations.items():
            assert (observation[key].astype(np.float32) == values[t]).all(), (t, key)
        observation, reward, *_ = env.step(action)
        assert reward == episode.others["rewards"][t]
    assert reward == 1
    env.close()


def test_the_command_again_finds_them_and_says_where_they_are_from(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256(recorded.read_bytes()).digest()
    job = ["demonstrate", f"out={recorded}", "episodes=2", "seed=1000", "valid_every=2", "model_file=true"]
    assert main(job) == 0 and "were there already" in capsys.readouterr().out
    assert main([*job, "perform.variety.sigma=0.2"]) == EXIT_USER_ERROR
    assert "source.perform.variety.sigma: 0.1 there, 0.2 now" in capsys.readouterr().err
    assert hashlib.sha256(recorded.read_bytes()).digest() == digest
    source = json.loads(str(read_attributes(recorded)["recording"]))["source"]
    assert source["env"] == "specpolicy_envs:specpolicy/Square-v0" and source["perform"]["expert"]["task"] == "square"


def test_a_task_without_an_expert_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demonstrate", "task=pusht", f"out={tmp_path / 'd.hdf5'}"]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert "there is no expert for 'pusht'" in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def robomimic(monkeypatch: pytest.MonkeyPatch) -> None:
    """robomimic imports more than its reader uses, and what cannot be imported everywhere: empty modules will do."""
    from specpolicy_envs.simulator import load_robosuite

    load_robosuite()
    parts = {"transforms": ("Lambda", "Compose"), "transforms.functional": (), "models": ()}
    modules = {"mujoco_py": ModuleType("mujoco_py"), "torchvision": ModuleType("torchvision")}
    for name, attributes in parts.items():
        module = modules[f"torchvision.{name}"] = ModuleType(f"torchvision.{name}")
        for attribute in attributes:
            setattr(module, attribute, object)
        parent, _, child = f"torchvision.{name}".rpartition(".")
        setattr(modules[parent], child, module)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@needs_robomimic
def test_robomimic_reads_them(recorded: Path, robomimic: None) -> None:
    from robomimic.utils import env_utils, file_utils, obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(KEYS)}})
    shapes = file_utils.get_shape_metadata_from_dataset(str(recorded))
    assert shapes["ac_dim"] == 7 and not shapes["use_images"]
    assert shapes["all_shapes"] == {key: [dim] for key, dim in KEYS.items()}

    demo, held_out = read_episodes(recorded)
    dataset = SequenceDataset(
        str(recorded),
        obs_keys=list(KEYS),
        dataset_keys=["actions", "rewards", "dones", "executed_actions"],
        frame_stack=2,
        seq_length=16,
        hdf5_cache_mode="low_dim",
        filter_by_attribute="train",
        load_next_obs=False,
    )
    assert len(dataset) == len(demo) and len(held_out)
    sequence = dataset[30]
    np.testing.assert_array_equal(sequence["actions"], demo.actions[29:46])
    np.testing.assert_array_equal(sequence["executed_actions"], demo.others["executed_actions"][29:46])
    for key in KEYS:
        np.testing.assert_array_equal(sequence["obs"][key], demo.observations[key][29:46])

    arguments = file_utils.get_env_metadata_from_dataset(str(recorded))
    env = env_utils.create_env_from_metadata(arguments, render=False, render_offscreen=False)
    seen = env.reset_to({"model": demo.attributes["model_file"], "states": demo.others["states"][40]})
    for key in KEYS:
        np.testing.assert_allclose(seen[key], demo.observations[key][40], atol=1e-5)
    env.reset_to({"states": demo.others["states"][-1]})
    assert env.is_success()["task"]
