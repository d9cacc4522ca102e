"""Folders of every kind: whole, damaged, empty, of one task or several."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_fakes import SAMPLERS, episodes, timed, write_folder

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.evaluation.manifest import ManifestError
from specpolicy.evaluation.report.page import write_report
from specpolicy.evaluation.report.recommendation import cautions_of
from specpolicy.evaluation.report.results import ReportError, ReportSettings, TaskResults, read_folder, read_task

QUIET = ReportSettings(videos=False)
WON = {name: [True, False] * 30 for name in SAMPLERS}


def cautions(results: TaskResults) -> str:
    return "\n".join(caution.text for caution in cautions_of(results))


def test_a_folder_of_tasks_becomes_one_page_with_an_overview(tmp_path: Path) -> None:
    for task in ("reach", "push"):
        write_folder(tmp_path / "out" / task, episodes(WON, task), timed() if task == "reach" else None)
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "table.md").write_text("of all tasks")
    page = write_report(tmp_path / "out", settings=QUIET)
    assert page == tmp_path / "out" / "report.html"
    text = page.read_text()
    assert "<h1>2 tasks</h1>" in text
    assert text.index('href="#task0">push') < text.index('href="#task1">reach') < text.index('id="task0"')
    assert "No latency was measured" in text and "Fastest with the distribution of ddpm" in text


def test_folders_of_one_task_are_told_apart(tmp_path: Path) -> None:
    for folder, task in (("reach", "reach"), ("reach_transformer", "reach"), ("push", "push")):
        write_folder(tmp_path / folder, episodes({"ddpm": [True], "free": [False]}, task), task=task)
    headings = [results.heading for results in read_folder(tmp_path)[0]]
    assert sorted(headings) == ["push", "reach", "reach (reach_transformer)"]
    text = write_report(tmp_path, settings=QUIET).read_text()
    assert "<h2>reach (reach_transformer)</h2>" in text and "<h2>push</h2>" in text


def test_samplers_keep_their_colours_from_task_to_task(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", episodes({"ddpm": [True], "free": [True]}, "a"))
    write_folder(tmp_path / "b", episodes({"free": [True], "short": [True]}, "b"))
    first, second = read_folder(tmp_path)[0]
    assert first.styles["free"].color == second.styles["free"].color
    assert len({first.styles["ddpm"].color, first.styles["free"].color, second.styles["short"].color}) == 3


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: None, "holds no results"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "episodes-0.parquet").write_bytes(b"PAR1"), "is not a results folder"),
        (lambda folder: write_folder(folder / "empty"), "no finished episodes and no measured latency"),
    ],
)
def test_nothing_to_report_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, says: str) -> None:
    assert callable(damage)
    folder = tmp_path / "x"
    folder.mkdir()
    damage(folder)
    with pytest.raises((ReportError, ManifestError), match=says):
        write_report(folder, settings=QUIET)
    assert main(["report", str(folder), "videos=false"]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and "Traceback" not in error
    assert not (folder / "report.html").exists()


def test_a_damaged_task_does_not_cost_the_others(tmp_path: Path) -> None:
    write_folder(tmp_path / "good", episodes(WON, "good"))
    (write_folder(tmp_path / "bad", episodes(WON, "bad")) / "manifest.json").write_text("[")
    text = write_report(tmp_path, settings=QUIET).read_text()
    assert "bad is not on this page" in text and "is damaged" in text and "<h2>good" in text


def test_damaged_parts_cost_no_more_than_themselves(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "reach", episodes(WON))
    (folder / "latency.json").write_text("{}")
    (folder / "episodes-99.parquet").write_bytes(b"nonsense")
    results = read_task(folder)
    assert len(results.records) == 240 and results.latency is None
    assert "latency.json is not a latency measurement" in cautions(results)
    assert "episodes-99.parquet cannot be read" in cautions(results)
    assert [caution.grave for caution in cautions_of(results)][:2] == [True, True]


def test_crashes_are_counted_and_listed(tmp_path: Path) -> None:
    crashes = episodes({"ddim": [False] * 2}, error="ValueError: <b>simulated</b>")
    folder = write_folder(tmp_path / "reach", [*crashes, *episodes({"ddpm": [True, True]})])
    text = write_report(folder, settings=QUIET).read_text()
    assert "Crashed episodes, counted as failures: ddim (approximate) 2 of 2." in text
    assert "ddim (approximate), seed 1, repeat 0: ValueError: &lt;b&gt;simulated" in text
    assert "Fewer than 50 episodes: ddpm 2, ddim (approximate) 2." in text
    assert "specpolicy rollout &#39;a=b c&#39;" in text


def test_cautions_about_latency(tmp_path: Path) -> None:
    latency = timed(["ddpm", "ddim"], calls=30, cpu="elsewhere")
    text = cautions(read_task(write_folder(tmp_path / "reach", episodes(WON), latency)))
    assert "Latency was measured on elsewhere, cpu; the episodes ran on here, cpu." in text
    assert "Without measured latency: free, short." in text
    assert "Fewer than 100 timed calls: ddpm 30, ddim (approximate) 30." in text
    fine = write_folder(tmp_path / "fine", episodes(WON, "fine"), timed())
    assert cautions(read_task(fine)) == ""


def test_the_reference_can_be_chosen_and_has_a_sensible_default(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "reach", [*episodes({"free": [True]}, passes=(12,)), *episodes({"short": [True]}, passes=(7,))]
    )
    assert read_task(folder).reference == "free"
    assert read_task(folder, "short").reference == "short"
    with pytest.raises(ReportError, match="no sampler 'ddpm' to compare with; it has free, short"):
        read_folder(folder, "ddpm")
    alone = read_task(write_folder(tmp_path / "alone", episodes({"ddim": [True]}, "alone"), timed(["ddim"])))
    assert alone.reference is None
    assert "no ratios" in cautions(alone)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "lr=3", episodes(WON, "lr=3"))
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(folder), f"out={out}", "videos=false"]) == 0
    assert f"report in {out}" in capsys.readouterr().out and "<h2>lr=3</h2>" in out.read_text()
    for arguments, says in [
        (["report"], "give one results folder"),
        (["report", "a", "b"], "these are 2: a, b"),
        (["report", "/nowhere"], "there is no folder /nowhere"),
        (["report", str(folder), "colour=red"], "colour"),
        (
            ["report", str(folder), "reference=warp"],
            "no sampler 'warp' to compare with; it has ddpm, free, short, ddim",
        ),
    ]:
        assert main(arguments) == EXIT_USER_ERROR
        assert says in capsys.readouterr().err
