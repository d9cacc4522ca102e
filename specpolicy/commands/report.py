"""``specpolicy report``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specpolicy.composition import choices, compose, plain, split_folder


def report(arguments: Sequence[str]) -> None:
    """write one HTML page about a results folder: specpolicy report runs/x"""
    from specpolicy.evaluation.report import ReportSettings, write_report

    folder, overrides = split_folder(arguments)
    settings: dict[str, Any] = plain(compose("report", overrides))
    out = settings.pop("out")

    def control_hz(task: str) -> float | None:
        return float(compose("rollout", [f"task={task}"]).task.control_hz) if task in choices("task") else None

    print(f"report in {write_report(folder, out, ReportSettings(**settings, control_hz=control_hz))}")
