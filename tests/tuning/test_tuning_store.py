"""Windows beside their checkpoint, by device and sampler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDPMScheduler

from specpolicy import BlockVerifier, FreeDrafter, FrozenDrafter, ReverseProcess, SpeculativeSampler, ZeroGuess
from specpolicy.tuning.store import WindowsError, device_name, load_windows, sampler_key, save_windows, windows_path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_samplers_are_told_apart() -> None:
    process = ReverseProcess.from_scheduler(DDPMScheduler(100), 10)
    free = SpeculativeSampler(process, FreeDrafter(), BlockVerifier())
    assert sampler_key(free) == "K=10, FreeDrafter, BlockVerifier, initial guess none"
    others = [
        SpeculativeSampler(process, FrozenDrafter()),
        SpeculativeSampler(process, initial_guess=ZeroGuess()),
        SpeculativeSampler(ReverseProcess.from_scheduler(DDPMScheduler(100), 11)),
    ]
    assert len({sampler_key(each) for each in [free, *others]}) == 4
    assert sampler_key(SpeculativeSampler(process, window=3)) == sampler_key(free), "the window is what is looked for"


def test_windows_of_several_samplers_lie_side_by_side(checkpoint: Path) -> None:
    path = save_windows({"windows": [2, 1, 1], "expected_ms": 1.5}, "a", checkpoint, "cpu")
    save_windows({"windows": [4]}, "b", checkpoint, "cpu")
    assert path == windows_path(checkpoint, "cpu") == checkpoint / f"windows-{device_name('cpu')}.json"
    assert load_windows("a", 3, checkpoint, "cpu") == [2, 1, 1] and load_windows("b", 1, checkpoint, "cpu") == [4]
    save_windows({"windows": [3, 1, 1]}, "a", checkpoint, "cpu")
    assert load_windows("a", 3, checkpoint, "cpu") == [3, 1, 1]


def test_what_is_missing_is_said(checkpoint: Path) -> None:
    with pytest.raises(WindowsError, match=r"no windows for this device .* run `specpolicy tune checkpoint="):
        load_windows("a", 3, checkpoint, "cpu")
    path = save_windows({"windows": [2, 1, 1]}, "a", checkpoint, "cpu")
    with pytest.raises(WindowsError, match=r"no windows for \(b\), only for \(a\)"):
        load_windows("b", 3, checkpoint, "cpu")
    with pytest.raises(WindowsError, match="are not 4 whole numbers"):
        load_windows("a", 4, checkpoint, "cpu")
    (checkpoint / "config.json").write_text("{ }")
    with pytest.raises(WindowsError, match="is of another policy"):
        load_windows("a", 3, checkpoint, "cpu")
    save_windows({"windows": [1]}, "b", checkpoint, "cpu")
    assert set(json.loads(path.read_text())["samplers"]) == {"b"}, "windows of other weights are worth nothing"
    path.write_text("half of i")
    with pytest.raises(WindowsError, match=r"cannot be read .* remove it"):
        load_windows("b", 1, checkpoint, "cpu")


@pytest.mark.parametrize("entry", [None, [1], {"windows": [True]}, {"windows": [0]}, {"windows": [10**400]}, {}])
def test_windows_that_are_none_are_refused(checkpoint: Path, entry: Any) -> None:
    path = save_windows({"windows": [2]}, "a", checkpoint, "cpu")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"samplers": {"a": entry}}))
    with pytest.raises(WindowsError, match="are not 1 whole numbers from 1 on"):
        load_windows("a", 1, checkpoint, "cpu")
    path.write_text("[" * 100_000)
    with pytest.raises(WindowsError, match="cannot be read"):
        load_windows("a", 1, checkpoint, "cpu")


def test_device_names_are_file_names() -> None:
    assert device_name("cpu").startswith("cpu-") and device_name("cpu").replace("-", "").isalnum()
