"""``specpolicy report``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specpolicy.config import available, compose, split_folder, to_container


def report(arguments: Sequence[str]) -> None:
    """Write one HTML page about a results folder: specpolicy report runs/x.

    Args:
        arguments: ``name=value``, in Hydra's grammar, and a path.
    """
    folder, overrides = split_folder(arguments)
    settings: dict[str, Any] = to_container(compose("report", overrides))

    from specpolicy.evaluation.report.page import write_report
    from specpolicy.evaluation.report.results import ReportSettings

    out = settings.pop("out")

    def control_hz(task: str) -> float | None:
        return float(compose("rollout", [f"task={task}"]).task.control_hz) if task in available("task") else None

    print(f"report in {write_report(folder, out, ReportSettings(**settings, control_hz=control_hz))}")
