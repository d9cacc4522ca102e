"""The page of the measured Square results, written once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from specpolicy.evaluation.report.page import write_report
from specpolicy.evaluation.report.results import ReportSettings

SQUARE = Path(__file__).parents[3] / "benchmarks" / "results" / "square"


@pytest.fixture(scope="session")
def square() -> Path:
    """Measured results."""
    return SQUARE


@pytest.fixture(scope="session")
def square_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Their page, without videos."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    settings = ReportSettings(videos=False, control_hz={"square": 20.0}.get)
    return write_report(SQUARE, out, settings).read_text(encoding="utf-8")
