"""The page: sections put into templates, everything inline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from specpolicy import __version__
from specpolicy.evaluation.report.figures import Picture, pictures_of
from specpolicy.evaluation.report.recommendation import Caution, Recommendation, cautions_of, differs, recommend
from specpolicy.evaluation.report.results import (
    Provenance,
    RealTimeBudget,
    ReportSettings,
    TaskResults,
    budget_of,
    provenance_of,
    read_folder,
)
from specpolicy.evaluation.summary import SummaryRow
from specpolicy.evaluation.tables import DISTRIBUTION, SAMPLER, Cell, Column, caption_of, columns_of, milliseconds
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar

PAGE = "report.html"
_VIDEOS = ("*.mp4", "videos/*.mp4")
_LEFT_OUT = ("steps to success", "p99 ms")  # so that the table fits the page; figures show both


@dataclass(frozen=True)
class Section:
    """Everything that the page says of one task."""

    anchor: str
    results: TaskResults
    budget: RealTimeBudget | None
    recommendations: Sequence[Recommendation]
    cautions: Sequence[Caution]
    columns: Sequence[Column[SummaryRow]]
    caption: str
    pictures: Sequence[Picture]
    videos: Sequence[tuple[str, str]]
    provenance: Provenance

    def recommended(self, kind: str) -> SummaryRow | None:
        """Look up the recommended sampler of a kind."""
        return next((each.row for each in self.recommendations if each.kind == kind), None)

    def cards(self) -> list[tuple[str, SummaryRow]]:
        """Give each recommended sampler its titles; one that is the fastest of several kinds has one card."""
        titles: dict[str, list[str]] = {}
        for each in self.recommendations:
            titles.setdefault(each.row.sampler, []).append(each.title)
        rows = {each.row.sampler: each.row for each in self.recommendations}
        return [(" · ".join(found), rows[name]) for name, found in titles.items()]

    def distribution(self, row: SummaryRow) -> str:
        """Say which distribution a sampler has, as far as its recipe tells."""
        target = self.results.targets.get(row.sampler)
        return f"exact, {target}" if row.exact and target else DISTRIBUTION.text(row)


def write_report(folder: str | Path, out: str | Path | None = None, settings: ReportSettings | None = None) -> Path:
    """Write one page about a results folder, or about a folder with one for each task.

    Args:
        folder: see :func:`read_folder`.
        out: the page; by default ``report.html`` in ``folder``.
        settings: choices that change the page.

    Returns:
        Where the page is. It needs nothing outside itself; recorded videos are linked.

    Raises:
        ReportError: there are no results, or they cannot be read.
    """
    chosen = settings or ReportSettings()
    target = Path(out) if out is not None else Path(folder) / PAGE
    tasks, failed = read_folder(folder, chosen.reference)
    with progress_bar("report", total=len(tasks)) as bar:
        sections = []
        for number, results in enumerate(tasks):
            bar.describe(f"report on {results.task}")
            sections.append(_section(results, f"task{number}", chosen, target.parent))
            bar.advance()
    page = _render(sections, failed)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _section(results: TaskResults, anchor: str, settings: ReportSettings, beside: Path) -> Section:
    budget = budget_of(results, settings.control_hz(results.task))
    reference = results.reference or "reference"
    columns = columns_of(results.rows, reference)
    return Section(
        anchor=anchor,
        results=results,
        budget=budget,
        recommendations=recommend(results),
        cautions=cautions_of(results),
        columns=[
            column for column in columns if column not in (SAMPLER, DISTRIBUTION) and column.title not in _LEFT_OUT
        ],
        caption=caption_of([replace(row, steps=None) for row in results.rows], reference),
        pictures=pictures_of(results, budget),
        videos=_videos(results.folder, beside) if settings.videos else [],
        provenance=provenance_of(results),
    )


def _videos(folder: Path, beside: Path) -> list[tuple[str, str]]:
    """List name and link of the videos that runs have left in a results folder."""
    found = sorted(path for pattern in _VIDEOS for path in folder.glob(pattern))
    links = []
    for path in found:
        absolute, base = path.resolve(), beside.resolve()
        below = absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else None
        links.append((path.relative_to(folder).as_posix(), quote(below) if below else absolute.as_uri()))
    return links


def _number(cell: Cell, part: str) -> str:
    """Typeset a minus sign in a cell's text or note."""
    return str(getattr(cell, part)).replace("-", "\u2212")


def _render(sections: Sequence[Section], failed: dict[Path, str]) -> str:
    templates = Environment(
        loader=PackageLoader("specpolicy.evaluation.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    loader = templates.loader
    assert loader is not None
    templates.filters |= {"number": _number, "milliseconds": milliseconds}

    def tint(section: Section, row: SummaryRow) -> str:
        color = section.results.styles[row.sampler].color
        return "var(--ink)" if color == "#000000" else color

    return templates.get_template("page.html").render(
        sections=sections,
        failed=failed,
        tint=tint,
        differs=differs,
        style=loader.get_source(templates, "style.css")[0],
        script=loader.get_source(templates, "sort.js")[0],
        version=__version__,
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
