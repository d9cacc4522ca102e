"""The page of the measured Square results: everything is on it, and nothing outside it is needed."""

from __future__ import annotations

import base64
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from specpolicy.control.latency_log import LatencyRun
from specpolicy.evaluation.results import read_results
from specpolicy.evaluation.summary import SummaryRow, summarize

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Outline(HTMLParser):
    """Checks that elements are nested, and collects attributes and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def rows(square: Path) -> list[SummaryRow]:
    records, manifest = read_results(square)
    exact = {name: entry["exact"] for name, entry in manifest.samplers.items()}
    return summarize(records, LatencyRun.read(square / "latency.json"), exact)


@pytest.fixture(scope="module")
def outline(square_page: str) -> Outline:
    return Outline(square_page)


def test_the_page_is_one_file(square_page: str, outline: Outline) -> None:
    assert not outline.open
    assert "http" not in square_page and "@import" not in square_page
    for _, name, value in outline.attributes:
        if name in ("src", "href", "srcset", "poster", "data", "xlink:href"):
            assert value.startswith(("#", "data:")), value
    assert set(re.findall(r"url\((.)", square_page)) <= {"#"}
    assert len(square_page) < 2_500_000


def test_the_table_holds_the_numbers_of_the_summary(square_page: str, rows: list[SummaryRow]) -> None:
    table = square_page[square_page.index('class="sortable"') :].split("</table>")[0]
    lines = {match[1]: match[0] for match in re.finditer(r"</i>([\w]+).*?</tr>", table, re.DOTALL)}
    assert list(lines) == [row.sampler for row in rows] and len(rows) == 12
    for row in rows:
        line = lines[row.sampler].replace("\u2212", "-")
        keys = [float(key) for key in re.findall(r'data-key="([^"]+)"', line)]
        assert row.success and row.latency and row.latency.p50 and row.latency.p95 and row.nfe and row.rows
        expected = [row.episodes, row.success.value, row.score and row.score.value]
        expected += [row.nfe, row.rows, row.latency.p50.value, row.latency.p95.value]
        expected += [row.latency.speed_up and row.latency.speed_up.value, row.difference and row.difference.value]
        expected += [row.p_corrected]
        np.testing.assert_allclose(keys, [number for number in expected if number is not None])
        low, high = (100 * bound for bound in row.success[1:])
        assert f"[{low:.1f}, {high:.1f}]" in line and f"{row.successes}/{row.episodes}" in line
        if row.difference and row.latency.speed_up:
            assert "[{:+.1f}, {:+.1f}]".format(*(100 * bound for bound in row.difference[1:])) in line
            assert "[{:.2f}, {:.2f}]".format(*row.latency.speed_up[1:]) in line


def test_approximate_samplers_are_marked_wherever_they_are_named(outline: Outline, rows: list[SummaryRow]) -> None:
    text = re.sub(r"\s+", " ", " ".join(outline.words))
    text = text[: text.index("Where the numbers come from")]  # commands below name samplers as they were typed
    for row in rows:
        assert text.count(row.sampler) >= 1
        named = re.findall(rf"\b{row.sampler}\b(?! \(?approx)", text)
        assert bool(named) == bool(row.exact), row.sampler


def test_the_recommendation_and_the_cautions_stand_on_top(outline: Outline, rows: list[SummaryRow]) -> None:
    text = re.sub(r"\s+", " ", unescape(" ".join(outline.words)))
    latency = next(row.latency for row in rows if row.sampler == "recycled")
    assert latency and latency.speed_up
    assert f"{latency.speed_up.value:.2f}× the speed of ddpm" in text
    assert text.index("Fastest with the distribution of ddpm") < text.index("All samplers")
    assert "Before you rely on it" in text and "without results" not in text
    assert "8 actions at 20 Hz last 400 ms" in text


def test_every_figure_is_there_and_needs_nothing_else(square_page: str, outline: Outline) -> None:
    sources = [value for tag, name, value in outline.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 7
    assert "acceptance along the chain is not known" not in square_page
    labels = [value for tag, name, value in outline.attributes if (tag, name) == ("img", "alt")]
    assert len(labels) == 7 and all(label.startswith("square: ") for label in labels)
    for source in sources:
        kind, _, content = source.partition(",")
        svg = base64.b64decode(content).decode()
        assert kind == "data:image/svg+xml;base64" and "<svg" in svg and "viewBox" in svg
        assert not re.search(r'(?:href|src)="(?!#)', svg)


def test_the_origin_is_told(outline: Outline) -> None:
    text = re.sub(r"\s+", " ", " ".join(outline.words))
    for fact in (
        "4d14a559768f319f39131673e58b8faa2fa3f724f2523acf89e0b8dfa7e27008",
        "torch 2.13.0+cpu",
        "100000–100099",
        "revision 7947b037d3b8",
        "AMD EPYC",
        "specpolicy evaluate",
        "100 calls of each sampler",
    ):
        assert fact in text, fact
