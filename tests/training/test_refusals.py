"""A training says what is wrong before anything is written, stops when it diverges, and knows its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from training_files import config, settings, write_file

from specpolicy.cli import main
from specpolicy.datasets.robomimic import DemonstrationError
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.training.loop import TrainingDiverged, TrainingSettings
from specpolicy.training.train import train_policy
from specpolicy.utils.digests import source_digest
from specpolicy.utils.run_identity import OtherRunError, claim_folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "training.batch_size=0: expected a whole number from 1"),
        ({"save_every": 0}, "training.save_every=0"),
        ({"steps": 0}, "training.steps=0"),
        ({"steps": 10.5}, "training.steps=10.5"),
        ({"steps": True}, "training.steps=True"),
        ({"learning_rate": "fast"}, "training.learning_rate='fast': expected a finite number, above 0"),
        ({"learning_rate": float("nan")}, "training.learning_rate=nan"),
        ({"learning_rate": 0}, "training.learning_rate=0"),
        ({"weight_decay": -1.0}, "training.weight_decay=-1.0: expected a finite number, at least 0"),
        ({"warmup_steps": -1}, "training.warmup_steps=-1"),
        ({"seed": "a"}, "training.seed='a'"),
        ({"bfloat16": "yes"}, "training.bfloat16='yes': expected true or false"),
        ({"threads": -2}, "training.threads=-2"),
    ],
)
def test_settings_are_checked_where_they_are_made(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TrainingSettings(**change)


def test_numpys_numbers_are_numbers() -> None:
    made = TrainingSettings(seed=np.int64(3), steps=np.int32(5), learning_rate=np.float32(0.5))  # type: ignore[arg-type]
    assert made == TrainingSettings(seed=3, steps=5, learning_rate=0.5) and type(made.seed) is int


def overrides(data: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "task.name=toy", "task.action_dim=4", "~task.observations", "+task.observations={object: 3, eef: 2}",
        f"dataset={data}", f"out={out}", "policy.network.channels=[8,16]", "policy.network.timestep_dim=8",
        "training.steps=6", "training.batch_size=16", "training.save_every=3", "training.warmup_steps=0",
        "training.bfloat16=false", "training.threads=1", "validation_demos=2", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.batch_size=0", "training.batch_size=0"),
        ("training.save_every=0", "training.save_every=0"),
        ("training.learning_rate=fast", "training.learning_rate='fast'"),
        ("training.steps=0", "training.steps=0"),
        ("validation_demos=-1", "validation_demos=-1"),
        ("task.action_dim=7", r"data/demo_0/actions has shape (30, 4); expected (steps, 7)"),
        ("filter_key=nope", "no filter key 'nope'"),
        ("policy.scheduler.variance_type=learned_range", "variance_type='learned_range'"),
    ],
)
def test_the_command_refuses_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    assert main(overrides(write_file(tmp_path / "d.hdf5"), tmp_path / "run", override)) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("error:") == 1 and "policy in" not in said.out
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_too_high_stops_and_names_the_last_good_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_file(tmp_path / "d.hdf5"), tmp_path / "run"
    assert main(overrides(data, out, "training.learning_rate=1e30")) == 2
    said = capsys.readouterr()
    assert "the loss is" in said.err and "no weights had been saved before" in said.err
    assert "policy in" not in said.out and not (out / "policy.safetensors").exists()


def test_divergence_after_a_save_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specpolicy.training import loop

    data, out, step = write_file(tmp_path / "d.hdf5"), tmp_path / "run", loop.TrainingLoop._step

    def poisoned(self: loop.TrainingLoop) -> float:
        if self.step == 14:
            with torch.no_grad():
                next(self.network.parameters()).fill_(float("inf"))
        return step(self)

    monkeypatch.setattr(loop.TrainingLoop, "_step", poisoned)
    with pytest.raises(TrainingDiverged, match=r"step 15: the loss is nan; the last good weights are those of step 10"):
        train_policy(config(), data, settings(), out, validation_demos=2)
    assert all(tensor.isfinite().all() for tensor in DiffusionPolicy.from_pretrained(out).state_dict().values())
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10]


def test_ranges_that_float32_cannot_hold(tmp_path: Path) -> None:
    data = write_file(tmp_path / "d.hdf5")
    with h5py.File(data, "a") as file:
        file["data/demo_0/actions"][:2, 1] = 3e38, -3e38
    with pytest.raises(DemonstrationError, match=r"d\.hdf5: actions\[1\] is spread wider than float32 can hold"):
        train_policy(config(), data, settings(), tmp_path / "run", validation_demos=2)
    assert not (tmp_path / "run").exists()


def test_masks_that_leave_nothing_to_learn(tmp_path: Path) -> None:
    data = write_file(tmp_path / "d.hdf5")
    with h5py.File(data, "a") as file:
        for name, group in file["data"].items():
            group["taught"] = np.zeros(len(group["actions"])) if name not in ("demo_1",) else np.ones(31)
    with pytest.raises(DemonstrationError, match="'taught' masks leave no action chunk to learn from"):
        train_policy(config(), data, settings(), tmp_path / "run", validation_demos=2)
    assert not (tmp_path / "run").exists()


def test_narrow_ranges_and_what_is_used_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_file(tmp_path / "d.hdf5")
    with h5py.File(data, "a") as file:
        for group in file["data"].values():
            group["obs/eef"][:, 1] = np.linspace(0.5, 0.5 + 8e-5, len(group["actions"]))
            group["obs/object"][:, 2] = 1.0
    with caplog.at_level("INFO", logger="specpolicy"):
        train_policy(config(), data, settings(steps=1), tmp_path / "run", validation_demos=2)
    assert "taken as constant, since they vary by less than 0.0001: eef[1] (8e-05)" in caplog.text
    assert "constant in the data: object[2]" in caplog.text
    assert caplog.text.count("demonstrations to learn from") == 1


# ---- a used folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finished")
    data = write_file(folder / "d.hdf5")
    train_policy(config(), data, settings(steps=2, save_every=1), folder / "run", validation_demos=2)
    return data, folder / "run"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"validation_demos": 3}, "data.validation_demos: 2 there, 3 now"),
        ({"filter_key": "all"}, "data.filter_key: None there, 'all' now"),
        ({"settings": {"learning_rate": 1e-5}}, "settings.learning_rate"),
        ({"config": {"horizon": 8}}, "config.horizon: 16 there, 8 now"),
        ({"config": {"network": {"name": "unet1d", "channels": [16, 16]}}}, "config.network.channels"),
    ],
)
def test_another_run_is_refused_with_what_differs(
    finished: tuple[Path, Path], change: dict[str, Any], says: str
) -> None:
    data, run = finished
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    arguments: dict[str, Any] = {"validation_demos": 2, **change}
    learning, shapes = arguments.pop("settings", {}), arguments.pop("config", {})
    shape = replace(config(), **({"n_action_steps": 4} if shapes else {}), **shapes)
    with pytest.raises(OtherRunError, match=says):
        train_policy(shape, data, settings(steps=2, save_every=1, **learning), run, **arguments)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_other_data_under_the_same_name_is_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = finished
    other = write_file(tmp_path / "d.hdf5", length=31)
    with pytest.raises(OtherRunError, match=r"data\.sha256"):
        train_policy(config(), other, settings(steps=2, save_every=1), run, validation_demos=2)


def test_the_same_run_again_is_finished_and_may_save_more_often(finished: tuple[Path, Path]) -> None:
    data, run = finished
    before = (run / "training.jsonl").read_bytes()
    train_policy(config(), data, settings(steps=2, save_every=2), run, validation_demos=2)
    assert (run / "training.jsonl").read_bytes() == before


def test_other_code_is_another_run(finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from specpolicy.training import loop

    data, run = finished
    monkeypatch.setattr(loop, "source_digest", lambda *packages: "0" * 16)
    with pytest.raises(OtherRunError, match=r"software\.source"):
        train_policy(config(), data, settings(steps=2, save_every=1), run, validation_demos=2)


def test_a_folder_with_a_policy_of_unknown_training_is_left_alone(tmp_path: Path) -> None:
    from specpolicy.policies.diffusion_policy import DiffusionPolicy

    DiffusionPolicy(config()).save_pretrained(tmp_path / "policy")
    before = (tmp_path / "policy" / "policy.safetensors").read_bytes()
    with pytest.raises(OtherRunError, match=r"holds config\.json, policy\.safetensors and no training\.json"):
        train_policy(config(), write_file(tmp_path / "d.hdf5"), settings(), tmp_path / "policy", validation_demos=2)
    assert (tmp_path / "policy" / "policy.safetensors").read_bytes() == before


def test_a_note_that_cannot_be_read(tmp_path: Path) -> None:
    for content in ("{", "[1]", "null"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(OtherRunError, match=r"run\.json"):
            claim_folder(tmp_path, {"a": 1}, name="run.json")
    with pytest.raises(OtherRunError, match="is a file; expected a folder"):
        claim_folder(tmp_path / "run.json", {"a": 1}, name="run.json")


def test_claiming_a_folder(tmp_path: Path) -> None:
    identity = {"settings": {"seed": 1, "threads": 2}, "data": "abc"}
    assert not claim_folder(tmp_path / "new" / "run", identity, name="run.json", free=["settings.threads"])
    other = {"settings": {"seed": 1, "threads": 9}, "data": "abc"}
    assert claim_folder(tmp_path / "new" / "run", other, name="run.json", free=["settings.threads"])
    with pytest.raises(OtherRunError, match=r"settings\.threads: 2 there, 9 now"):
        claim_folder(tmp_path / "new" / "run", other, name="run.json")


def test_the_digest_of_sources_is_of_their_content() -> None:
    assert source_digest("specpolicy.training") == source_digest("specpolicy.training")
    assert source_digest("specpolicy.training") != source_digest("specpolicy.training.loop")
