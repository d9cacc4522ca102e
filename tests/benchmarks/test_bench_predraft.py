"""What the pre-draft benchmark hands to predictors, and what its table says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_predraft
import numpy as np


def test_a_moment_is_guessed_from_the_actions_since() -> None:
    moment = bench_predraft.Moment(
        [{"x": np.array([[float(tick)]])} for tick in range(9)], [np.array([10.0 * tick]) for tick in range(8)]
    )

    def remember(window: Any, ticks: int, actions: Any) -> Any:
        return window["x"][-1, 0], ticks, actions[:, 0].tolist()

    assert moment.guess(remember, 3) == (5.0, 3, [50.0, 60.0, 70.0])
    assert moment.guess(remember, 8) == (0.0, 8, [10.0 * tick for tick in range(8)])


def test_checkpoints_with_a_forward_model_are_measured_with_it(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "checkpoints" / "square"
    assert list(bench_predraft.predictors(str(shipped))) == ["last", "linear", "learned"]
    assert list(bench_predraft.predictors(str(tmp_path))) == ["last", "linear"]


def test_times_stand_with_the_predictor_that_they_were_measured_with(tmp_path: Path) -> None:
    def row(value: float, **more: Any) -> dict[str, Any]:
        return {"sampler": "free_block", "passes": {"value": value}, **more}

    rows = [row(9.0)] + [
        row(value, predictor=name, age=age) for name, value in (("linear", 3.0), ("learned", 2.0)) for age in (1, 2)
    ]
    ratio = {"value": 0.5, "low": 0.4, "high": 0.6}
    results = {
        "task": "reach", "n": 7, "rows": rows, "timed_with": "learned",
        "times": [{"sampler": "free_block", "age": 1, "times_ddim10": ratio, "times_ddim5": ratio}],
    }  # fmt: skip
    (tmp_path / "reach.json").write_text(json.dumps(results))
    lines = bench_predraft.overview(tmp_path).splitlines()
    assert lines[2] == "| reach | `free_block` | linear | 9.0 | 3.0 | 3.0 |  |  |"
    assert lines[3] == "| reach | `free_block` | learned | 9.0 | 2.0 | 2.0 | 0.50 [0.40, 0.60] | 0.50 [0.40, 0.60] |"
