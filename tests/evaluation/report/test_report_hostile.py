"""What a results folder may do to its reader: nothing. Odd content ends in one line or is left out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_fakes import SAMPLERS, episodes, timed, write_folder

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.evaluation.report.page import write_report

WON = {name: [True, False] * 30 for name in SAMPLERS}


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_that_a_manifest_names_is_resolved_imported_or_called(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tmp_path / "evil.py").write_text(f"open({str(sprung)!r}, 'w')")
    call = {"_target_": "pathlib.Path.touch", "_args_": [str(sprung)]}
    interpolation = f"${{oc.create:{{_target_: pathlib.Path.touch, self: {sprung}}}}}"
    recipes: dict[str, Any] = {
        "ddpm": {"exact": True, "recipe": call},
        "free": {"exact": True, "recipe": interpolation},
        "short": {"exact": True, "recipe": {"_target_": "specpolicy.samplers.compiled", "sampler": interpolation}},
        "ddim": {"exact": False, "recipe": {"_target_": interpolation, "_partial_": True}},
    }
    folder = write_folder(
        tmp_path / "reach", episodes(WON), timed(), recipes,
        environment={"id": "evil:Trap-v0", "kwargs": call}, policy={"network": {"name": interpolation}},
    )  # fmt: skip
    (folder / "observations.npz").write_bytes(pickle.dumps(Trap(sprung)))
    np.save(folder / "x.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    assert main(["report", str(folder)]) == 0
    assert "evil:Trap-v0" in (folder / "report.html").read_text()  # said, not imported
    assert not sprung.exists()


@pytest.mark.parametrize(
    "content",
    [
        "null", "[]", '"text"', "3", "{}", '{"format": 1}', '{"format": null, "configuration": {}}',
        '{"format": 1, "x": 1}',
        '{"format": 1, "configuration": null}', '{"format": 1, "configuration": []}',
        '{"format": 1, "configuration": {}, "samplers": []}',
        '{"format": 1, "configuration": {}, "samplers": {"ddpm": null}}',
        '{"format": 1, "configuration": {}, "samplers": {"ddpm": {"exact": "yes"}}}',
        '{"format": 1, "configuration": {}, "samplers": {}, "provenance": {}}',
        '{"format": 1, "configuration": {}, "samplers": {}, "provenance": [null]}',
        '{"format": 1, "configuration": {}, "samplers": {}, "provenance": ["text"]}',
        "[" * 100_000, "\x00\xff", "",
    ],
)  # fmt: skip
def test_odd_manifests_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    folder = write_folder(tmp_path / "reach", episodes({"ddpm": [True]}))
    before = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    (folder / "manifest.json").write_text(content)
    assert main(["report", str(folder)]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "manifest.json" in error and "Traceback" not in error
    assert {path.name: path.read_bytes() for path in folder.glob("*.parquet")} == before


@pytest.mark.parametrize(
    "entry",
    [
        {"git": "text", "machine": [], "packages": 3, "seeds": 7, "command": {}, "python": [], "time_utc": None},
        {"git": {"revision": 5, "dirty": "x"}, "machine": {"cpu": {}, "cores": "x", "load_1min": "y"}},
        {"machine": None, "packages": None, "command": [[], None]},
    ],
)
def test_odd_provenance_and_configuration_cost_no_more_than_themselves(tmp_path: Path, entry: dict[str, Any]) -> None:
    folder = write_folder(tmp_path / "reach", episodes(WON), timed())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["provenance"] = [entry]
    manifest["configuration"] |= {"task": ["x"], "environment": 3, "policy": [1], "checkpoint": {"a": 1}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "All samplers" in write_report(folder).read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"samplers": []},
        {"samplers": {"ddpm": None}},
        {"samplers": {"ddpm": {"exact": True, "nanoseconds": ["x"], "passes": [1], "evaluations": [1]}}},
        {"samplers": {"ddpm": {"exact": True, "nanoseconds": [1.5, None], "passes": [1], "evaluations": [1]}}},
        {"samplers": {"ddpm": {"exact": True, "nanoseconds": [1, -2], "passes": [1, 1], "evaluations": [1, 1]}}},
        {"samplers": {"ddpm": {"exact": True, "nanoseconds": [1], "passes": [1], "evaluations": [1], "rounds": [[3]]}}},
        {"provenance": []},
        {"device": None, "threads": "x"},
    ],
)
def test_an_odd_latency_measurement_is_left_out_and_named(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write_folder(tmp_path / "reach", episodes(WON), timed())
    content = json.loads((folder / "latency.json").read_text()) | change
    (folder / "latency.json").write_text(json.dumps(content))
    text = write_report(folder).read_text()
    assert "latency.json is not a latency measurement" in text


def test_odd_names_are_texts(tmp_path: Path) -> None:
    odd = ["<script>alert(1)</script>", "$\\frac$", "_hidden", "a|b"]
    samplers = {name: {"exact": True} for name in odd}
    records = episodes({name: [True, False] * 3 for name in odd})
    text = write_report(write_folder(tmp_path / "reach", records, None, samplers)).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_videos_that_a_run_has_left_are_linked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "reach", episodes(WON))
    (folder / "roll out.mp4").write_bytes(b"video")
    inside = write_report(folder).read_text()
    assert '<a href="roll%20out.mp4">roll out.mp4</a>' in inside
    outside = write_report(folder, tmp_path / "elsewhere" / "page.html").read_text()
    assert f'<a href="{(folder / "roll out.mp4").resolve().as_uri()}">' in outside
    assert main(["report", str(folder), "videos=false"]) == 0
    assert "roll out.mp4" not in (folder / "report.html").read_text()
