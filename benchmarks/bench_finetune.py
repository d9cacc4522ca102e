"""How many chunks a second fine-tuning collects: exact speculation beside the sequential chain, by environments.

    python benchmarks/bench_finetune.py --envs 1 4 16 64

All chains that are wanted at one time share a batch, as in ``examples/finetune_square.py``. Speculation trades
sequential evaluations for rows: with one environment rows are nearly free, with many they fill the processor. Both
samplers take turns in one process, with environments in it; seconds are of the process, so that neighbours of the
machine matter little, and what is compared are ratios. Written to ``benchmarks/results/finetune``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import ROOT

from specpolicy.evaluation.statistics import mean_interval
from specpolicy.rollout.env_worker import EnvPool
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

sys.path.insert(0, str(ROOT / "examples"))
import finetune_square as finetune

SAMPLERS = ("sequential", "speculative")


class Timed:
    """A sampler, and what its calls took.

    Attributes:
        seconds: of the process. chunks, passes, rows: sampled, sequential evaluations and rows of all of them.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler, self.exact = sampler, sampler.exact
        self.seconds, self.chunks, self.calls, self.passes, self.rows = 0.0, 0, 0, 0, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Sample, and note the time."""
        begun = time.process_time()
        result = self._sampler(*arguments, **named)
        self.seconds += time.process_time() - begun
        self.chunks += len(result.passes)
        self.calls += 1
        self.passes += int(result.passes.max())
        self.rows += int(result.evaluations.sum())
        return result


def measure(trainer: Any, envs: int, repeats: int) -> list[dict[str, Any]]:
    """Play ``envs`` episodes side by side, ``repeats`` times for each sampler in turn; a row for each sampler."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SAMPLERS}
    with EnvPool(trainer.worker, envs, in_process=True) as pool:
        for repeat in range(-1, repeats):  # the first is for warm-up
            for name in SAMPLERS:
                settings = replace(trainer.settings, sampler=name)
                sampler = Timed(finetune.make_sampler(settings, trainer.exploring))
                begun = time.process_time()
                seeds = range(finetune.TRAINING_SEEDS, finetune.TRAINING_SEEDS + envs)
                list(finetune.play(trainer.policy, sampler, trainer.exploring, pool, seeds, repeat + 1))
                total = time.process_time() - begun
                if repeat >= 0:
                    found[name].append(
                        {
                            "sampling_ms": 1e3 * sampler.seconds / sampler.chunks,
                            "total_ms": 1e3 * total / sampler.chunks,
                            "nfe": sampler.passes / sampler.calls,
                            "rows": sampler.rows / sampler.chunks,
                        }
                    )
    return [{"envs": envs, "sampler": name, **_row(found[name], found["sequential"])} for name in SAMPLERS]


def _row(mine: list[dict[str, float]], sequential: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {name: float(np.mean([each[name] for each in mine])) for name in mine[0]}
    for name, part in (("sampling_speed", "sampling_ms"), ("speed", "total_ms")):
        # Logarithms of ratios of turns that followed each other; the interval is of the geometric mean.
        ratios = [np.log(b[part] / a[part]) for a, b in zip(mine, sequential, strict=True)]
        estimate = mean_interval(ratios)
        row[name] = [float(np.exp(each)) for each in (estimate.value, estimate.low, estimate.high)]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Render markdown."""
    lines = [
        "| environments | sampler | NFE / batch | rows / chunk | sampling, × [95 %] | all, × [95 %] |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        ratios = [
            "–" if row["sampler"] == "sequential" else "{:.2f} [{:.2f}, {:.2f}]".format(*row[name])
            for name in ("sampling_speed", "speed")
        ]
        lines.append(
            f"| {row['envs']} | {row['sampler']} | {row['nfe']:.1f} | {row['rows']:.1f} | {ratios[0]} | {ratios[1]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pusht")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=6, help="of each episode")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "finetune")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = finetune.Settings(task=options.task)
    trainer = finetune.Trainer(settings, Path("/nonexistent"))
    ticks = options.chunks * trainer.policy.config.n_action_steps
    trainer.worker = replace(trainer.worker, max_ticks=ticks)
    rows: list[dict[str, Any]] = []
    with progress_bar("environments", total=len(options.envs)) as bar:
        for envs in options.envs:
            rows += measure(trainer, envs, options.repeats)
            bar.advance()
    content = {
        "task": options.task,
        "steps": settings.steps,
        "window": settings.window,
        "repeats": options.repeats,
        "chunks": options.chunks,
        "clock": "process time, one thread, environments in the process",
        "provenance": collect_provenance(f"checkpoints/{options.task}"),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        (f"throughput-{options.task}.json", json.dumps(content, indent=1) + "\n"),
        (f"throughput-{options.task}.md", table(rows)),
    ):
        with atomic_path(options.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
