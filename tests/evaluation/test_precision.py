"""A network in reduced precision is another target: wherever its sampler is named, that is said."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_fakes import FakeContestants, FakeSampler, reach, record
from rich.console import Console

from specpolicy.control.latency_log import CallLog, LatencyRun
from specpolicy.evaluation.certificate import Certificate, Detectable, SamplerRow
from specpolicy.evaluation.compare import compare
from specpolicy.evaluation.comparison import Conclusion
from specpolicy.evaluation.fidelity import Fidelity, fidelity_json, fidelity_table
from specpolicy.evaluation.manifest import ConfigurationMismatch, Manifest
from specpolicy.evaluation.plots import styles_of
from specpolicy.evaluation.report.page import write_report
from specpolicy.evaluation.summary import SummaryRow, summarize
from specpolicy.evaluation.tables import markdown_table, rich_table
from specpolicy.evaluation.task_average import json_overall, markdown_overall, summarize_tasks


@dataclass(frozen=True)
class Runtime(FakeSampler):
    """A sampler whose network is evaluated by another runtime."""

    backend: str = "openvino"
    precision: str = "f32"


REDUCED = {"ddpm": Runtime(passes=100, precision="bf16"), "ddim": Runtime(exact=False, precision="bf16")}
LOG = CallLog(True, [1_000_000] * 3, [10] * 3, [30] * 3, precision="bf16")


def test_every_table_says_it(tmp_path: Path) -> None:
    run = LatencyRun({"ddpm": LOG, "free": replace(LOG, precision=None)}, "cpu", 1, 0, 1)
    run.write(tmp_path / "latency.json")
    assert LatencyRun.read(tmp_path / "latency.json") == run
    rows = summarize([record("ddpm"), record("free")], run)
    table = markdown_table(rows)
    assert [row.precision for row in rows] == ["bf16", None]
    assert "| ddpm | exact, bf16 network |" in table and "| free | exact |" in table
    assert "bf16 network: it was computed in reduced precision, and exact means the distribution of that" in table
    console = Console(file=io.StringIO(), width=100)
    console.print(rich_table(rows))
    assert "bf16 network" in console.file.getvalue()  # type: ignore[attr-defined]
    conclusions = {"reach": Conclusion([record("ddpm"), record("free")], rows)}
    overall = summarize_tasks(conclusions)
    assert "| ddpm | exact, bf16 network |" in markdown_overall(overall, conclusions).split("\n## ")[0]
    assert json.loads(json_overall(overall, conclusions))["overall"][0]["precision"] == "bf16"
    assert [style.label for style in styles_of(rows).values()] == ["ddpm (bf16 network)", "free"]


def test_tables_of_the_network_as_it_was_loaded_say_nothing() -> None:
    assert "network:" not in markdown_table(summarize([record("ddpm")], exact={"ddpm": True}))


def test_fidelity_and_certificate_say_it() -> None:
    measured = Fidelity(True, [0.0, 0.1], [0.0, 0.1], [1.0, 1.0], [1.0, 1.0], [None, None], 0.5, 7.25, 61, "bf16")
    table = fidelity_table({"ddpm": measured}, 8)
    assert "| exact, bf16 network | 7.2 | 61 |" in table and "distribution of that reduced network" in table
    assert json.loads(fidelity_json({"ddpm": measured}, 8, {}))["samplers"]["ddpm"]["precision"] == "bf16"
    row = SamplerRow("fast", True, 7.0, 60.0, None, "bf16")
    certificate = Certificate("here", "fast", 100, 20, 0.5, {"mean": 0.5}, Detectable(1, 1, 1, 1), 0.0, [row])
    assert "has the distribution of the 100-step chain of the bf16 network" in certificate.verdict
    console = Console(file=io.StringIO(), width=120)
    certificate.show(console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "exact, bf16 network" in shown and "distribution of that reduced network" in shown


def compared(tmp_path: Path, **samplers: FakeSampler) -> list[SummaryRow]:
    contestants = FakeContestants(samplers=samplers)
    repeats = dict.fromkeys(samplers, 1)
    return compare(
        reach(tmp_path / "checkpoint", contestants=contestants, repeats=repeats, latency_calls=2), tmp_path / "out"
    )


def test_an_evaluation_keeps_it_and_its_report_says_it(tmp_path: Path) -> None:
    rows = compared(tmp_path, **REDUCED)
    out = tmp_path / "out"
    assert [row.precision for row in rows] == ["bf16", "bf16"]
    assert "| ddim | approx., bf16 network |" in (out / "table.md").read_text()
    network = {"backend": "openvino", "precision": "bf16"}
    assert {name: each["network"] for name, each in Manifest.read(out).samplers.items()} == dict.fromkeys(
        REDUCED, network
    )
    assert {log.precision for log in LatencyRun.read(out / "latency.json").samplers.values()} == {"bf16"}
    (out / "latency.json").unlink()  # the manifest alone says it
    page = write_report(out).read_text(encoding="utf-8")
    assert "exact, bf16 network" in page and "exact means the distribution of that reduced network" in page


@pytest.mark.parametrize(
    "other", [FakeSampler(), Runtime(), Runtime(precision="bf16", backend="another")], ids=["torch", "f32", "backend"]
)
def test_runs_of_another_backend_or_precision_do_not_share_a_folder(tmp_path: Path, other: Any) -> None:
    compared(tmp_path, ddpm=REDUCED["ddpm"])
    for name in ("ddpm", "free"):
        with pytest.raises(ConfigurationMismatch, match=r"openvino in bf16.*give the same compile= and precision="):
            compared(tmp_path, **{name: other})
    assert set(Manifest.read(tmp_path / "out").samplers) == {"ddpm"}
    assert [row.sampler for row in compared(tmp_path, free=REDUCED["ddpm"])] == ["free"]


def test_folders_from_before_it_was_noted_go_on(tmp_path: Path) -> None:
    recipe = {"_target_": "specpolicy.samplers.compiled", "backend": "openvino"}
    before = Manifest({"task": "reach"}, {"ddpm": {"exact": True, "recipe": recipe}})
    network = {"backend": "openvino", "precision": "f32"}
    now = Manifest({"task": "reach"}, {"ddpm": {"exact": True, "recipe": recipe, "network": network}})
    assert before.joined(now, tmp_path).samplers == now.samplers
    with pytest.raises(ConfigurationMismatch, match="openvino in f32, and this run's by PyTorch"):
        before.joined(Manifest({"task": "reach"}, {"free": {"exact": True}}), tmp_path)


def test_rows_are_the_states_that_were_evaluated() -> None:
    """Of all played chunks together; of timed calls where nothing was played."""
    records = [record(seed=0, passes=(10, 12), evaluations=50), record(seed=1, passes=(8,), evaluations=40)]
    (row,) = summarize(records)
    assert row.rows == pytest.approx(30) and row.nfe == pytest.approx(10)
    assert "| NFE / chunk | rows / chunk |" in markdown_table([row]) and "| 30 |" in markdown_table([row])
    (timed,) = summarize(latency=LatencyRun({"ddpm": LOG}, "cpu", 1, 0, 1))
    assert timed.rows == 30 and asdict(timed)["rows"] == 30
    crashed = [record(seed=2, passes=(), evaluations=0, success=False, error="boom")]
    assert summarize(crashed)[0].rows is None
    (overall,) = summarize_tasks({"a": Conclusion(records, [row]), "b": Conclusion([], [replace(row, rows=10)])})
    assert overall.rows == np.mean([30, 10])
