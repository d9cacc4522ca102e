"""One policy from the demonstrations of several files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
from training_files import KEYS, config, settings, write_file

from specpolicy.datasets.demonstrations import join_demonstrations, read_demonstrations
from specpolicy.datasets.robomimic import DemonstrationError
from specpolicy.training.train import train_policy
from specpolicy.utils.run_identity import OtherRunError


def _say_control(path: Path, control_delta: bool) -> Path:
    with h5py.File(path, "a") as file:
        arguments = {
            "env_name": "NutAssemblySquare",
            "env_kwargs": {"controller_configs": {"control_delta": control_delta}},
        }
        file["data"].attrs["env_args"] = json.dumps(arguments)
    return path


def test_a_policy_learns_from_both_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    human, scripted = write_file(tmp_path / "human.hdf5"), write_file(tmp_path / "scripted.hdf5", demos=8, mask=False)
    with h5py.File(scripted, "a") as file:
        file["data/demo_0/actions"][0] = 1.0  # the widest action stands in the second file
    with caplog.at_level(logging.INFO):
        policy = train_policy(config(), [human, scripted], settings(), tmp_path / "run", validation_demos=2)
    assert np.allclose(policy.action_normalizer.high.numpy(), 1.0)
    assert "human.hdf5: 4 demonstrations to learn from" in caplog.text
    assert "scripted.hdf5: 6 demonstrations to learn from" in caplog.text
    with pytest.raises(OtherRunError):
        train_policy(config(), [human], settings(), tmp_path / "run", validation_demos=2)


def test_episodes_keep_the_order_of_the_files(tmp_path: Path) -> None:
    files = [write_file(tmp_path / "a.hdf5", demos=4), write_file(tmp_path / "b.hdf5", demos=3, length=12, mask=False)]
    joined = join_demonstrations([read_demonstrations(path, KEYS, validation_demos=1) for path in files])
    assert [len(each.actions) for each in joined.train] == [30, 32, 12, 13]
    assert [len(each.actions) for each in joined.valid] == [31, 33, 14]


def test_files_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    relative, absolute = (_say_control(write_file(tmp_path / f"{delta}.hdf5"), delta) for delta in (True, False))
    for files, says in (
        ([relative, absolute], "actions are relative in .*True.hdf5, but absolute in .*False.hdf5"),
        ([relative, relative], "names .*True.hdf5 twice"),
        ([], "names no file"),
    ):
        with pytest.raises(DemonstrationError, match=says):
            train_policy(config(), files, settings(), tmp_path / "run", validation_demos=2)
    assert not (tmp_path / "run").exists()
