"""Clips of recorded episodes, and the words in their place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import evaluation_fakes as fakes
import pytest
from report_fakes import DRAFTED, SAMPLERS, episodes, timed, write_folder

from specpolicy.evaluation.report import videos
from specpolicy.evaluation.report.page import write_report
from specpolicy.evaluation.report.results import ReportSettings, TaskResults, read_task
from specpolicy.evaluation.report.videos import Stage, StageError, set_stage
from specpolicy.policies.checkpoint import checkpoint_digest
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.rollout.env_worker import EnvPool, MakeEnv
from specpolicy.rollout.episodes import episode_keys
from specpolicy.rollout.runner import rollout

SETTINGS = ReportSettings()
SAMPLER = fakes.FakeSampler(noise=3.0)


@pytest.fixture
def played(tmp_path: Path) -> Path:
    """A folder of episodes that were really played, some of them failures."""
    make_env = MakeEnv("Reach-v0", {"disable_env_checker": True}, imports=("evaluation_fakes",))
    with EnvPool(make_env, 2, in_process=True) as pool:
        records = list(rollout(fakes.FakePolicy(), SAMPLER, pool, episode_keys("free", range(12)), task="reach"))
    assert 0 < sum(record.success for record in records) < 12
    return write_folder(tmp_path / "reach", records, timed(["free"]))


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stage that needs no checkpoint; the list tells how often it was set."""
    calls: list[str] = []

    def stage(results: TaskResults, sampler: str, checkpoint: str | None, device: str) -> Stage:
        calls.append(sampler)
        how = {"render_mode": "rgb_array", "disable_env_checker": True}
        env = MakeEnv("Reach-v0", how, imports=("evaluation_fakes",))
        return Stage(fakes.FakePolicy(), SAMPLER, env)

    monkeypatch.setattr(videos, "set_stage", stage)
    return calls


def test_a_success_and_a_failure_are_filmed_once(played: Path, staged: list[str]) -> None:
    page = write_report(played, settings=SETTINGS).read_text()
    assert page.count('src="data:video/mp4;base64,') == 2
    assert "A success of free" in page and "A failure of free" in page
    clips = sorted(played.glob("replay-*.mp4"))
    records = {record.seed: record for record in read_task(played).records}
    assert [clip.name.split("-")[1] for clip in clips] == ["failure", "success"]
    assert [records[int(clip.stem.split("-")[-2])].success for clip in clips] == [False, True]
    again = videos.videos_of(read_task(played), "free", None, SETTINGS)
    assert len(again.clips) == 2 and staged == ["free"], "what is there is not filmed again"


def test_an_episode_that_ends_otherwise_is_not_shown(played: Path, staged: list[str]) -> None:
    results = read_task(played)
    swapped = [dataclasses.replace(record, success=not record.success) for record in results.records]
    found = videos.videos_of(dataclasses.replace(results, records=swapped), "free", None, SETTINGS)
    assert not found.clips and not list(played.glob("*.mp4"))
    assert all("ended otherwise when played alone" in note for note in found.notes) and len(found.notes) == 2


def test_without_a_checkpoint_the_page_says_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "reach", episodes({"free": [True]}))
    page = write_report(folder, settings=ReportSettings(film="free")).read_text()
    assert "No video of a success of free. StageError: the manifest does not say where the checkpoint is" in page
    assert "<h2>reach</h2>" in page and "<video" not in page


def test_only_failures_or_no_episodes_are_told_apart(tmp_path: Path, staged: list[str]) -> None:
    results = read_task(write_folder(tmp_path / "reach", episodes({"ddpm": [True]}, error="x"), timed(["free"])))
    notes = videos.videos_of(results, "ddpm", None, SETTINGS).notes
    assert [note.split(":")[0] for note in notes] == ["No success to show", "No failure to show"]
    assert "no episodes of asd here" in videos.videos_of(results, "asd", None, SETTINGS).notes[0]
    assert not videos.videos_of(results, "ddpm", None, ReportSettings(videos=False)).notes


def test_videos_that_are_too_large_for_the_page_are_named(
    played: Path, staged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (played / "rollout.mp4").write_bytes(b"0" * 300_000)
    monkeypatch.setattr("specpolicy.evaluation.report.page._VIDEO_BYTES", 299_999)
    page = write_report(played, settings=SETTINGS).read_text()
    assert page.count("<video") == 2 and "Too large for this page: rollout.mp4" in page


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = PolicyConfig(
        task="reach",
        observations={"position": 2, "goal": 2},
        action_dim=2,
        network={"name": "unet1d", "channels": [8, 8], "timestep_dim": 8},
        scheduler={"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"},
    )
    DiffusionPolicy(config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def results_with(folder: Path, checkpoint: Path, recipe: Any) -> TaskResults:
    samplers = SAMPLERS | {"free": {"exact": True, "recipe": recipe}}
    digest = checkpoint_digest(checkpoint)
    return read_task(write_folder(folder, episodes({"free": [True]}), samplers=samplers, checkpoint=digest))


def test_the_stage_is_that_of_the_manifest(tmp_path: Path, checkpoint: Path) -> None:
    recipe = DRAFTED | {"drafter": {"_target_": "specpolicy.FrozenDrafter"}, "window": 7}
    recipe |= {"verifier": {"_target_": "specpolicy.ReflectionVerifier"}}
    stage = set_stage(results_with(tmp_path / "reach", checkpoint, recipe), "free", str(checkpoint))
    assert repr(stage.sampler) == "SpeculativeSampler(K=100, FrozenDrafter, ReflectionVerifier, window=7)"
    assert stage.make_env.id == "evaluation_fakes:Reach-v0" and stage.make_env.kwargs == {"render_mode": "rgb_array"}
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + " ")
    with pytest.raises(StageError, match="is not the checkpoint of these results"):
        set_stage(read_task(tmp_path / "reach"), "free", str(checkpoint))
    with pytest.raises(StageError, match=r"no checkpoint at .*; say where it is with checkpoint="):
        set_stage(read_task(tmp_path / "reach"), "free", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "recipe",
    [
        {"_target_": "os.system", "command": "false"},
        {"_target_": "specpolicy.cli.sys.exit"},
        {"_target_": "specpolicy.samplers.speculative", "drafter": {"_target_": "subprocess.run"}},
        {"_target_": "specpolicy.samplers.DDIMScheduler"},
        "SequentialSampler(K=100)",
    ],
)
def test_recipes_of_a_folder_cannot_run_anything_else(tmp_path: Path, checkpoint: Path, recipe: Any) -> None:
    results = results_with(tmp_path / "reach", checkpoint, recipe)
    with pytest.raises(StageError, match=r"no part of specpolicy|not kept in a form"):
        set_stage(results, "free", str(checkpoint))
