"""Rollouts recorded for other tools: what is in the files, and what a run that goes on adds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.control.executors import Lockstep
from specpolicy.datasets.lerobot import LeRobotDataset
from specpolicy.datasets.lerobot_writer import write_lerobot_dataset
from specpolicy.datasets.robomimic import DemonstrationFile, Episode, EpisodeError, read_attributes, read_episodes
from specpolicy.datasets.rollouts import RolloutRecording
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.rollout.env_worker import EnvPool, WorkerConfig
from specpolicy.rollout.episodes import EpisodeKey, EpisodeSpec
from specpolicy.rollout.runner import run_episodes
from specpolicy.samplers import ddim

pytest.importorskip("h5py", reason="needs h5py: pip install 'specpolicy[train]'")
pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'specpolicy[eval]'")
CHECKPOINT = f"checkpoint={Path(__file__).parents[2] / 'checkpoints' / 'pusht'}"


class Walk(gymnasium.Env[Any, Any]):
    """The position is the sum of the actions; it has a camera, and on request a sensor that breaks."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, steps: int = 6, broken_from: int | None = None) -> None:
        self._steps, self._broken = steps, broken_from
        self.observation_space = gymnasium.spaces.Dict(
            {
                "place": gymnasium.spaces.Box(-np.inf, np.inf, (2,)),
                "eye": gymnasium.spaces.Box(0, 255, (3, 4, 5), np.uint8),
            }
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place, self._count = self.np_random.normal(size=2), 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._place, self._count = self._place + action, self._count + 1
        over = self._count == self._steps
        return self._seen(), float(self._count), over, False, {"success": over and self._place[0] > 0}

    def _seen(self) -> dict[str, NDArray[Any]]:
        place = self._place if self._broken is None or self._count < self._broken else np.full(2, np.nan)
        return {"place": place.copy(), "eye": np.full((3, 4, 5), self._count, np.uint8)}


class Blind(DiffusionPolicy):
    """A policy of random weights that does not look, so that a broken sensor does not stop it."""

    def predict_action(self, observation: Any, *arguments: Any, **named: Any) -> Any:
        batch = len(observation["place"])
        return super().predict_action({"place": np.zeros((batch, 2, 2), np.float32)}, *arguments, **named)


def make_policy() -> Blind:
    torch.manual_seed(0)
    network = {"name": "mlp", "width": 16, "blocks": 1, "embed": 16}
    return Blind(PolicyConfig("walk", {"place": 2}, 2, network=network, scheduler={"num_train_timesteps": 10})).eval()


def play(
    folder: Path, seeds: range, broken_from: int | None = None
) -> tuple[RolloutRecording, list[EpisodeKey], list[Any]]:
    """Play episodes in a worker that records them."""
    recording = RolloutRecording(folder / "walks.hdf5", ("ddim2",), "walk", 20.0)
    policy, keys = make_policy(), [EpisodeKey("ddim2", seed, 0) for seed in seeds]
    config = WorkerConfig(lambda: Walk(broken_from=broken_from), 2, make_views=recording)
    specs = [EpisodeSpec(key, "ddim2", Lockstep(8)) for key in keys]
    with EnvPool(config, 1) as pool:
        results = list(run_episodes(policy, {"ddim2": ddim(policy, 2)}, pool, specs, task="walk"))
    return recording, keys, results


def test_rows_are_what_was_seen_before_each_action_and_what_came_of_it(tmp_path: Path) -> None:
    recording, keys, results = play(tmp_path, range(3))
    assert recording.assemble(keys) == [tmp_path / "walks.hdf5"]
    episodes = list(read_episodes(tmp_path / "walks.hdf5"))
    for episode, key, result in zip(episodes, keys, sorted(results, key=lambda each: each.seed), strict=True):
        env = Walk()
        seen, _ = env.reset(seed=key.seed)
        for row, action in enumerate(episode.actions):
            np.testing.assert_allclose(episode.observations["place"][row], seen["place"], atol=1e-5)
            assert (episode.observations["eye"][row] == seen["eye"]).all()
            seen, reward, over, _, _ = env.step(action)
            assert episode.others["rewards"][row] == reward and episode.others["dones"][row] == over
        assert episode.attributes == {
            "seed": key.seed, "repeat": 0, "sampler": "ddim2", "success": result.success,
        }  # fmt: skip
    with DemonstrationFile(tmp_path / "walks.hdf5") as file:
        masks = file.masks()
    successes = [f"demo_{number}" for number, key in enumerate(keys) if episodes[number].attributes["success"]]
    assert masks.get("successful", []) == successes and len(masks["train"]) == 3
    assert {len(successes), 3 - len(successes)} == {len(masks.get("successful", [])), len(masks.get("failed", []))}


def test_episodes_that_cannot_be_demonstrations_are_left_out_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"seed 0, ddim2: not recorded: obs/place contains NaN"):
        recording, keys, results = play(tmp_path, range(1), broken_from=3)
    assert results[0].error is None
    with pytest.warns(UserWarning, match="1 of 1 episodes of ddim2 are not in the recording"):
        assert recording.assemble(keys) == []


def test_what_is_there_and_not_ours_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "walks.hdf5").write_text("precious")
    with pytest.raises(FileExistsError, match=r"was not recorded by a rollout; choose another record="):
        RolloutRecording(tmp_path / "walks.hdf5", ("ddim2",), "walk", 20.0)


def test_lerobots_layout_is_read_back(tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    parquet = pytest.importorskip("pyarrow.parquet")
    recording, keys, _ = play(tmp_path, range(3))
    folder = RolloutRecording(tmp_path / "walks", ("ddim2",), "walk", 20.0)
    recording.parts.rename(folder.parts)
    assert folder.assemble(keys) == [tmp_path / "walks"]
    parts = [next(read_episodes(folder.part(key))) for key in keys]
    read = list(LeRobotDataset(tmp_path / "walks").episodes({"place": 2}, {"eye": (3, 4, 5)}, 2))
    for part, episode in zip(parts, read, strict=True):
        np.testing.assert_array_equal(episode.actions, part.actions)
        np.testing.assert_array_equal(episode.observations, part.observations["place"])
        np.testing.assert_array_equal(episode.images["eye"], part.observations["eye"])
    info = json.loads((tmp_path / "walks/meta/info.json").read_text())
    stats = json.loads((tmp_path / "walks/meta/stats.json").read_text())
    places = np.concatenate([part.observations["place"] for part in parts]).astype(np.float64)
    for kind, values in {"mean": places.mean(0), "std": places.std(0), "min": places.min(0)}.items():
        np.testing.assert_allclose(stats["observation.state"][kind], values, atol=1e-9)
    eyes = np.concatenate([part.observations["eye"] for part in parts]) / 255
    np.testing.assert_allclose(np.ravel(stats["observation.images.eye"]["mean"]), eyes.mean((0, 2, 3)))
    assert np.shape(stats["observation.images.eye"]["std"]) == (3, 1, 1)
    assert info["total_frames"] == 18 and info["fps"] == 20 and info["splits"] == {"train": "0:3"}
    rows = parquet.read_table(tmp_path / "walks/meta/episodes/chunk-000/file-000.parquet").to_pydict()
    assert rows["dataset_from_index"] == [0, 6, 12] and rows["seed"] == [0, 1, 2]
    data = parquet.read_table(tmp_path / "walks/data/chunk-000/file-000.parquet").to_pydict()
    assert data["index"] == list(range(18)) and data["frame_index"] == 3 * list(range(6))
    assert images.open(io.BytesIO(data["observation.images.eye"][3]["bytes"])).size == (5, 4)


def test_a_data_set_is_whole_or_not_there(tmp_path: Path) -> None:
    def episode(width: int) -> Episode:
        return Episode(np.zeros((3, 2), np.float32), {"place": np.zeros((3, width), np.float32)})

    with pytest.raises(EpisodeError, match=r"episode 1 has other features than the first one: \['observation.place'"):
        write_lerobot_dataset(tmp_path / "a", [episode(2), episode(3)], 20, "walk")
    with pytest.raises(EpisodeError, match="no episodes"):
        write_lerobot_dataset(tmp_path / "a", [], 20, "walk")
    with pytest.raises(ValueError, match=r"fps=12.5; a LeRobotDataset has a whole number"):
        write_lerobot_dataset(tmp_path / "a", [episode(2)], 12.5, "walk")
    assert list(tmp_path.iterdir()) == []
    assert write_lerobot_dataset(tmp_path / "a", [episode(2)], 20, "walk") == 1
    with pytest.raises(FileExistsError, match="is there already"):
        write_lerobot_dataset(tmp_path / "a", [episode(2)], 20, "walk")


def test_rollout_records_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("pymunk", reason="needs PushT: pip install 'specpolicy[pusht]'")
    common = ["rollout", "task=pusht", CHECKPOINT, "sampler=ddim2", "num_envs=1", "latency_calls=0", "video=[]",
              f"out={tmp_path / 'out'}", "record=hdf5"]  # fmt: skip
    target = tmp_path / "out" / "rollouts.hdf5"
    assert main([*common, "seeds=[300000]"]) == 0
    first = next(read_episodes(target))
    assert first.actions.dtype == np.float32 and first.observations["keypoints"].shape == (len(first), 18)
    assert json.loads(str(read_attributes(target)["env_args"]))["env_name"] == "specpolicy/PushT-v0"
    assert main([*common, "seeds=[300000,300001]"]) == 0
    again = list(read_episodes(target))
    assert [each.attributes["seed"] for each in again] == [300000, 300001]
    np.testing.assert_array_equal(again[0].actions, first.actions)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("notes.txt", "write hdf5, lerobot or mcap"),
        ("{there}", "was not recorded by a rollout; choose another record="),
    ],
)
def test_bad_targets_are_refused_before_anything_is_played(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, record: str, says: str
) -> None:
    there = tmp_path / "there.hdf5"
    there.write_text("precious")
    arguments = ["rollout", "task=pusht", CHECKPOINT, "sampler=ddim2", f"out={tmp_path / 'out'}"]
    assert main([*arguments, f"record={record.format(there=there)}"]) == EXIT_USER_ERROR
    assert says in capsys.readouterr().err and not (tmp_path / "out" / "manifest.json").exists()
    assert there.read_text() == "precious"
