"""What samplers were fitted with decides results, and is part of a folder's identity."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from specpolicy import samplers
from specpolicy.calibration.store import load_calibration, save_calibration
from specpolicy.evaluation.comparison import CheckpointLoader
from specpolicy.evaluation.manifest import ConfigurationMismatch, Manifest
from specpolicy.policies.checkpoint import CheckpointError
from specpolicy.utils.digests import file_digest

SHIPPED = Path("checkpoints/pusht")


def loader(checkpoint: Path) -> CheckpointLoader:
    recipes = {name: partial(samplers.load, name) for name in ("ddpm20", "recycled20", "analytic10")}
    return CheckpointLoader(str(checkpoint), "pusht", recipes)


def test_each_sampler_names_its_own_files() -> None:
    opened = loader(SHIPPED)()
    assert opened.fitted == {
        "ddpm20": {},
        "recycled20": {
            "calibration-20.safetensors": file_digest(SHIPPED / "calibration-20.safetensors"),
        },
        "analytic10": {"x0_variance.json": file_digest(SHIPPED / "x0_variance.json")},
    }
    assert opened.recipe("ddpm20", {"x": 1}) == {"exact": True, "recipe": {"x": 1}}
    assert opened.recipe("recycled20", {})["fitted"] == opened.fitted["recycled20"]


def test_a_calibration_fitted_again_is_another_recipe(tmp_path: Path) -> None:
    checkpoint = tmp_path / "pusht"
    shutil.copytree(SHIPPED, checkpoint)
    pinned = loader(checkpoint).pinned()
    before = Manifest({"task": "pusht"}, {"recycled20": pinned().recipe("recycled20", {})})
    calibration = load_calibration(checkpoint, 20)
    calibration.jacobian.values.mul_(0.5)
    save_calibration(calibration, checkpoint)

    after = Manifest({"task": "pusht"}, {"recycled20": loader(checkpoint)().recipe("recycled20", {})})
    with pytest.raises(ConfigurationMismatch, match=r"recycled20.*calibration-20\.safetensors"):
        before.joined(after, tmp_path)
    pinned._loaded.clear()  # as on another machine
    with pytest.raises(CheckpointError, match="recycled20 was fitted with"):
        pinned()


def test_folders_from_before_such_notes_go_on(tmp_path: Path) -> None:
    older = Manifest({}, {"recycled20": {"exact": True, "recipe": {}}})
    now = Manifest({}, {"recycled20": {"exact": True, "recipe": {}, "fitted": {"calibration-20.safetensors": "ab"}}})
    joined = older.joined(now, tmp_path)
    assert json.dumps(joined.samplers) == json.dumps(now.samplers)
    with pytest.raises(ConfigurationMismatch, match="fitted"):
        now.joined(older, tmp_path)
