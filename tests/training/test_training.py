"""From an HDF5 file to a policy: reading, cutting, learning, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from training_files import KEYS, config, settings, write_file

from specpolicy.cli import main
from specpolicy.datasets.action_chunks import cut_action_chunks
from specpolicy.datasets.demonstrations import Demonstration, read_demonstrations
from specpolicy.datasets.robomimic import DemonstrationError
from specpolicy.policies.checkpoint import read_seen_seeds
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.training.loop import ResumeError, averaged_model
from specpolicy.training.train import train_policy
from specpolicy.utils.run_identity import OtherRunError


def test_reading_and_splitting(tmp_path: Path) -> None:
    data = read_demonstrations(write_file(tmp_path / "d.hdf5"), KEYS, validation_demos=3)
    assert [d.name for d in data.valid] == ["demo_1", "demo_3", "demo_5"]
    assert [d.name for d in data.train] == ["demo_0", "demo_2", "demo_4"]
    assert data.train[1].observations.shape == (32, 5) and data.train[1].actions.shape == (32, 4)


def test_chunks_line_up_and_repeat_the_borders() -> None:
    t = np.arange(20, dtype=np.float32)
    episode = Demonstration("d", observations=t[:, None], actions=t[:, None] + 100)
    chunks = cut_action_chunks([episode], n_obs_steps=2, horizon=16, n_action_steps=8)
    assert len(chunks) == 20 - 16 + 1 + 1 + 7
    assert chunks.observations[0, :, 0].tolist() == [0, 0]
    assert chunks.actions[0, :3, 0].tolist() == [100, 100, 101]
    assert chunks.observations[5, :, 0].tolist() == [4, 5]
    assert chunks.actions[5, :, 0].tolist() == list(range(104, 120))
    # the last pair's executed part (8 from its second step on) is all real but for the repeated end
    assert chunks.actions[-1, :, 0].tolist() == [*range(111, 120), *[119] * 7]


def test_faults_made_on_purpose_are_left_out_and_their_repair_is_kept(tmp_path: Path) -> None:
    t = np.arange(60, dtype=np.float32)
    taught = (t < 20) | (t >= 25)
    episode = Demonstration("d", observations=t[:, None], actions=t[:, None], taught=taught)
    chunks = cut_action_chunks([episode], n_obs_steps=2, horizon=16, n_action_steps=8)
    learned = chunks.actions[:, 1:, 0]  # the first entry lies before the present step
    assert not ((learned >= 20) & (learned < 25)).any()
    assert {float(chunk[0]) for chunk in learned} == {*range(6), *range(25, 53)}

    def mark(group: h5py.Group) -> None:
        group.create_dataset("taught", data=np.arange(32) > 3)

    data = read_demonstrations(_spoil(write_file(tmp_path / "d.hdf5"), mark), KEYS, validation_demos=2)
    marked = {d.name: d.taught for d in (*data.train, *data.valid)}
    assert marked["demo_1"] is None and marked["demo_2"] is not None
    assert marked["demo_2"].tolist() == [False] * 4 + [True] * 28


def test_short_episodes_still_teach() -> None:
    episode = Demonstration("d", np.zeros((3, 1), np.float32), np.arange(3, dtype=np.float32)[:, None])
    chunks = cut_action_chunks([episode], 2, 16, 8)
    assert chunks.actions[0, :5, 0].tolist() == [0, 0, 1, 2, 2]


def _spoil(path: Path, edit) -> Path:  # type: ignore[no-untyped-def]
    with h5py.File(path, "a") as file:
        edit(file["data/demo_2"])
    return path


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda g: g.__delitem__("actions"), "'actions' is missing"),
        (lambda g: g.__delitem__("obs/eef"), r"lacks \['eef'\]"),
        (lambda g: g["actions"].__setitem__((0, 0), np.nan), "NaN"),
        (lambda g: (g.__delitem__("obs/eef"), g.create_dataset("obs/eef", data=np.zeros((32, 9)))), "expected"),
        (lambda g: g.create_dataset("taught", data=np.ones(31)), r"taught has shape \(31,\); expected \(32,\)"),
    ],
)
def test_bad_files_name_the_episode(tmp_path: Path, edit, says: str) -> None:  # type: ignore[no-untyped-def]
    path = _spoil(write_file(tmp_path / "d.hdf5"), edit)
    with pytest.raises(DemonstrationError, match=says) as error:
        read_demonstrations(path, KEYS, 1)
    assert "demo_2" in str(error.value)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match="no demonstrations at"):
        read_demonstrations(tmp_path / "nowhere.hdf5", KEYS)
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with pytest.raises(DemonstrationError, match="not a readable HDF5"):
        read_demonstrations(tmp_path / "text.hdf5", KEYS)
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file.create_group("meta")
    with pytest.raises(DemonstrationError, match="no group 'data'"):
        read_demonstrations(tmp_path / "empty.hdf5", KEYS)
    with pytest.raises(DemonstrationError, match="none left to train on"):
        read_demonstrations(write_file(tmp_path / "d.hdf5"), KEYS, validation_demos=6)


def test_training_lowers_the_loss_and_writes_a_policy(tmp_path: Path) -> None:
    data = write_file(tmp_path / "d.hdf5")
    train_policy(
        config(), data, settings(steps=120, save_every=60, learning_rate=3e-3), tmp_path / "run", validation_demos=2
    )
    log = [json.loads(line) for line in (tmp_path / "run/training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [60, 120]
    assert log[1]["train_loss"] < log[0]["train_loss"] < 1.2
    assert 0 < log[1]["validation_loss"] < 1.5
    policy = DiffusionPolicy.from_pretrained(tmp_path / "run")
    assert policy.config == config()
    low = np.concatenate([d.actions for d in read_demonstrations(data, KEYS, 2).train]).min(0)
    np.testing.assert_allclose(policy.action_normalizer.low.numpy(), low)


def test_a_policy_knows_the_seeds_of_its_demonstrations(tmp_path: Path) -> None:
    data = write_file(tmp_path / "d.hdf5")
    train_policy(config(), data, settings(steps=1), tmp_path / "human", validation_demos=2)
    assert read_seen_seeds(tmp_path / "human") == frozenset()
    with h5py.File(data, "a") as file:
        for i in range(6):
            file[f"data/demo_{i}"].attrs["seed"] = 40 + i
    train_policy(config(), data, settings(steps=1), tmp_path / "expert", validation_demos=2)
    assert read_seen_seeds(tmp_path / "expert") == {40, 42, 44, 45}  # those held out are not among them


def test_resuming_equals_going_through(tmp_path: Path) -> None:
    data = write_file(tmp_path / "d.hdf5")
    whole = train_policy(config(), data, settings(), tmp_path / "whole", validation_demos=2)

    class Stopped(Exception):
        pass

    from specpolicy.training.loop import TrainingLoop

    step, calls = TrainingLoop._step, 0

    def stop_after(self: TrainingLoop) -> float:
        nonlocal calls
        calls += 1
        if calls == 18:  # eight steps after the last save
            raise Stopped
        return step(self)

    TrainingLoop._step = stop_after  # type: ignore[method-assign]
    try:
        with pytest.raises(Stopped):
            train_policy(config(), data, settings(), tmp_path / "parts", validation_demos=2)
    finally:
        TrainingLoop._step = step  # type: ignore[method-assign]
    parts = train_policy(config(), data, settings(), tmp_path / "parts", validation_demos=2)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor), name


@pytest.mark.slow
@pytest.mark.flaky(reruns=2, reruns_delay=5)  # it meets the real clock
def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    data, out = write_file(tmp_path / "d.hdf5"), tmp_path / "run"
    overrides = [
        "task.name=toy", "task.action_dim=4", "~task.observations", "+task.observations={object: 3, eef: 2}",
        f"dataset={data}", f"out={out}", "policy.network.channels=[8,16]", "policy.network.timestep_dim=8",
        "training.steps=200", "training.batch_size=16", "training.save_every=20", "training.bfloat16=false",
        "training.threads=1", "validation_demos=2",
    ]  # fmt: skip
    command = [sys.executable, "-m", "specpolicy.cli", "train", *overrides]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 600
    while not (out / "training.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(out / "training.pt", weights_only=True)["step"]
    assert reached < 200
    assert main(["train", *overrides]) == 0
    steps = [json.loads(line)["step"] for line in (out / "training.jsonl").read_text().splitlines()]
    assert steps[-1] == 200 and steps == sorted(steps)
    assert DiffusionPolicy.from_pretrained(out).config.task == "toy"


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    data = write_file(tmp_path / "d.hdf5")
    train_policy(config(), data, settings(), tmp_path / "run", validation_demos=2)
    with pytest.raises(OtherRunError, match="learning_rate"):
        train_policy(config(), data, settings(learning_rate=1e-5), tmp_path / "run", validation_demos=2)
    (tmp_path / "run/training.pt").write_bytes(b"gone")
    with pytest.raises(ResumeError, match="delete it"):
        train_policy(config(), data, settings(), tmp_path / "run", validation_demos=2)


def test_moving_average_follows_the_warm_up_of_its_decay() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
    average, expected = averaged_model(module, power=0.75, limit=0.7), 0.0
    for step in range(1, 8):
        with torch.no_grad():
            module.weight.fill_(float(step))
        average.update_parameters(module)
        decay = min(0.7, 1 - step**-0.75)
        expected = decay * expected + (1 - decay) * step
    assert average.module.weight.item() == pytest.approx(expected)


def test_a_student_learns_what_its_teacher_says(tmp_path: Path) -> None:
    data = write_file(tmp_path / "d.hdf5")
    train_policy(config(), data, settings(), tmp_path / "teacher", validation_demos=2)
    teacher = DiffusionPolicy.from_pretrained(tmp_path / "teacher")
    small = replace(config(), network={"name": "mlp", "width": 32, "blocks": 1, "embed": 16})
    longer = settings(steps=150, save_every=50, learning_rate=5e-3)
    student = train_policy(small, data, longer, tmp_path / "student", validation_demos=2, teacher=teacher)
    assert torch.equal(student.action_normalizer.high, teacher.action_normalizer.high)
    losses = [json.loads(line) for line in (tmp_path / "student" / "training.jsonl").read_text().splitlines()]
    # Noise cannot be guessed from one draw; what a teacher makes of it can.
    generator = torch.Generator().manual_seed(0)
    x, cond = torch.randn(64, 16, 4, generator=generator), torch.rand(64, 10, generator=generator) * 2 - 1
    timestep = torch.randint(20, (64,), generator=generator)
    with torch.no_grad():
        told, answer = teacher(x, timestep, cond), student(x, timestep, cond)
    assert float((answer - told).square().mean()) < 0.5 * float(told.square().mean())
    assert losses[-1]["validation_loss"] < losses[0]["validation_loss"]
    with pytest.raises(OtherRunError, match="teacher"):
        train_policy(small, data, longer, tmp_path / "student", validation_demos=2)


def test_teachers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data, teacher = write_file(tmp_path / "d.hdf5"), DiffusionPolicy(config())
    with pytest.raises(ValueError, match="not loaded from a checkpoint"):
        train_policy(config(), data, settings(), tmp_path / "student", validation_demos=2, teacher=teacher)
    longer = replace(config(), horizon=32)
    with pytest.raises(ValueError, match="horizon: the teacher's is 16, the policy's 32"):
        train_policy(longer, data, settings(), tmp_path / "student", validation_demos=2, teacher=teacher)
