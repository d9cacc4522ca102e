"""The page: sections put into templates, everything inline."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from specpolicy import __version__
from specpolicy.evaluation.report import formatting as words
from specpolicy.evaluation.report.figures import Picture, pictures_of, property_of
from specpolicy.evaluation.report.recommendation import Recommendation, Warning_, differs, recommend, warnings_of
from specpolicy.evaluation.report.results import (
    Origin,
    RealTimeBudget,
    ReportError,
    ReportSettings,
    TaskResults,
    budget_of,
    machine_of,
    origin_of,
    read_folder,
)
from specpolicy.evaluation.report.tables import Column, Line, columns_of, lines_of
from specpolicy.evaluation.report.videos import Clip, Videos, videos_of
from specpolicy.evaluation.summary import SummaryRow
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar

PAGE = "report.html"
_VIDEO_BYTES = 10_000_000  # on the whole page; four thirds of it in base64


@dataclass(frozen=True)
class Section:
    """Everything that the page says of one task."""

    anchor: str
    results: TaskResults
    pace: RealTimeBudget | None
    verdict: Recommendation
    cautions: Sequence[Warning_]
    columns: Sequence[Column]
    lines: Sequence[Line]
    pictures: Sequence[Picture]
    videos: Videos
    origin: Origin
    machine: str


def write_report(folder: str | Path, out: str | Path | None = None, settings: ReportSettings | None = None) -> Path:
    """Write one page about a results folder, or about a folder with one for each task.

    Args:
        folder: see :func:`read_folder`.
        out: the page; by default ``report.html`` in ``folder``.
        settings: choices that change the page.

    Returns:
        Where the page is. It refers to nothing outside itself.

    Raises:
        ReportError: there are no results, or they cannot be read.
    """
    chosen = settings or ReportSettings()
    target = Path(out) if out is not None else Path(folder) / PAGE
    tasks, failed = read_folder(folder, chosen.reference)
    if chosen.film is not None and not any(task.row(chosen.film) for task in tasks):
        known = sorted({row.sampler for task in tasks for row in task.rows})
        raise ReportError(f"there is no sampler {chosen.film!r} to film; there are {', '.join(known)}")
    with progress_bar("report", total=len(tasks)) as bar:
        sections = []
        for number, results in enumerate(tasks):
            bar.describe(f"report on {results.task}")
            sections.append(_section(results, f"task{number}", chosen))
            bar.advance()
    page = _render(sections, failed, _inline([clip for section in sections for clip in section.videos.clips]))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _section(results: TaskResults, anchor: str, settings: ReportSettings) -> Section:
    pace = budget_of(results, settings.control_hz(results.task))
    verdict = recommend(results, pace)
    exact = next((pick.row.sampler for pick in verdict.picks if pick.row.exact), results.reference)
    return Section(
        anchor=anchor,
        results=results,
        pace=pace,
        verdict=verdict,
        cautions=warnings_of(results),
        columns=columns_of(results),
        lines=lines_of(results),
        pictures=pictures_of(results, pace, f"{anchor}-"),
        videos=videos_of(results, settings.film or exact, pace, settings),
        origin=origin_of(results),
        machine=machine_of(results),
    )


def _inline(clips: Sequence[Clip]) -> dict[Path, str]:
    """Videos as data URIs, as many as the page can carry; replays go before what shows samplers side by side."""
    inlined: dict[Path, str] = {}
    left = _VIDEO_BYTES
    for clip in sorted(clips, key=lambda clip: not clip.replay):
        content = clip.path.read_bytes()
        if len(content) <= left:
            inlined[clip.path] = "data:video/mp4;base64," + base64.b64encode(content).decode("ascii")
            left -= len(content)
    return inlined


def _render(sections: Sequence[Section], failed: dict[Path, str], videos: dict[Path, str]) -> str:
    templates = Environment(
        loader=PackageLoader("specpolicy.evaluation.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {
        "milliseconds": words.milliseconds, "times": words.times, "points": words.points, "percent": words.percent,
        "interval": words.interval, "p_value": words.p_value,
    }  # fmt: skip
    loader = templates.loader
    assert loader is not None

    def tint(section: Section, row: SummaryRow) -> str:
        return property_of(section.results.looks[row.sampler].color)

    return templates.get_template("page.html").render(
        sections=sections,
        failed=failed,
        videos=videos,
        tint=tint,
        differs=differs,
        style=loader.get_source(templates, "style.css")[0],
        script=loader.get_source(templates, "sort.js")[0],
        version=__version__,
        milliseconds=words.milliseconds,
        points=words.points,
        bare_times=lambda value: words.times(value).rstrip("×"),
        bare_percent=lambda value: f"{100 * value:.1f}",
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
