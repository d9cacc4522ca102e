"""``specpolicy inspect`` and ``specpolicy convert`` on checkpoints of other packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from foreign_files import FIXTURES, LEROBOT, ROBOMIMIC, TRANSFORMER

import specpolicy
from specpolicy.cli import main


@pytest.mark.parametrize("path", [LEROBOT, ROBOMIMIC, TRANSFORMER], ids=lambda path: path.name)
def test_inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(path)]) == 0
    assert capsys.readouterr().out.strip() == specpolicy.load_policy(path).report()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "no checkpoint at /nowhere"),
        ([], "write specpolicy inspect PATH"),
        (["a", "b"], "write specpolicy inspect PATH"),
        ([str(FIXTURES / "README.md")], "is no torch archive"),
    ],
)
def test_inspect_says_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of diffusion_policy's checkpoints have equal signs in them."""
    source = tmp_path / "epoch=0550-test_mean_score=0.969.ckpt"
    shutil.copy(TRANSFORMER, source)
    out = tmp_path / "out"
    assert main(["convert", str(source), f"out={out}"]) == 0
    assert f"written to {out}" in capsys.readouterr().out
    ours, theirs = specpolicy.load_policy(out), specpolicy.load_policy(source)
    assert ours.config == theirs.config and ours.report() == theirs.report()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    assert {file.name for file in out.iterdir()} == {"config.json", "policy.safetensors"}

    assert main(["convert", f"source={source}", f"out={out}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_convert_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(LEROBOT)]) == 2
    assert "out=FOLDER" in capsys.readouterr().err
    assert main(["convert", "/nowhere/latest.ckpt", f"out={tmp_path / 'out'}"]) == 2
    assert "no checkpoint at /nowhere/latest.ckpt" in capsys.readouterr().err
    (tmp_path / "recordings.zarr").mkdir()
    (tmp_path / "recordings.zarr" / "data").mkdir()
    assert main(["convert", f"source={tmp_path / 'recordings.zarr'}", f"out={tmp_path / 'x.hdf5'}"]) == 2
    assert "recordings.zarr" in capsys.readouterr().err
