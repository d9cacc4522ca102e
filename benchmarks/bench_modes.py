"""Do few-step samplers keep the modes and the spread of a policy's action chunks? Searched over recorded observations.

    python benchmarks/bench_modes.py [task]

For every observation that the task's evaluation has recorded, chunks of ``ddpm`` are drawn and projected onto their
first principal component; a mode is a peak of the kernel density there (Scott's bandwidth) that rises by a fifth of the
highest. Observations are ranked by the share of chunks beyond the deepest valley, the rarer mode's, on *one* sample
of ``ddpm``; everything that is written down is measured on fresh ones, among them a second sample of ``ddpm`` itself,
so that chance and selection do not pass for a difference. Results in ``benchmarks/results/modes``, the picture in docs.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_short_chains import evenly
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.signal import find_peaks
from scipy.stats import gaussian_kde
from side_by_side import RESULTS

from specpolicy import samplers as factories
from specpolicy.evaluation.plots import COLORS, MUTED, save, style_axes
from specpolicy.evaluation.results import read_observations
from specpolicy.evaluation.statistics import Estimate, mean_interval
from specpolicy.evaluation.two_sample import energy_distance
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.protocols import Observation
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

ROOT = RESULTS.parents[1]
SAMPLERS = ("ddpm", "free_block", "ddim10", "ddim5", "ddim2")
SHOWN, PICTURED = 8, 2
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """The direction in which the policy's chunks at one observation vary most, and where their density is lowest.

    Attributes:
        centre: mean chunk, flattened.
        direction: first principal component.
        modes: number of peaks of the density.
        valley: where the density between the two highest peaks is lowest; NaN with one peak.
    """

    centre: Points
    direction: Points
    modes: int
    valley: float

    @classmethod
    def of(cls, chunks: Points) -> Axis:
        """Fit it to chunks of shape ``(n, d)``."""
        centre = chunks.mean(axis=0)
        direction = np.linalg.svd(chunks - centre, full_matrices=False)[2][0]
        places, density, peaks = _peaks((chunks - centre) @ direction)
        valley = float("nan")
        if len(peaks) > 1:
            first, second = sorted(peaks[np.argsort(density[peaks])[-2:]])
            valley = float(places[first + int(np.argmin(density[first:second]))])
        return cls(centre, direction, len(peaks), valley)

    def along(self, chunks: Points) -> Points:
        """Project chunks ``(n, d)``."""
        return np.asarray((chunks - self.centre) @ self.direction)

    def share_above(self, chunks: Points) -> float:
        """Share of chunks beyond the valley."""
        return float(np.mean(self.along(chunks) > self.valley))

    def rarer(self, chunks: Points) -> float:
        """Share of chunks in the rarer of two modes; 0 with one."""
        share = 0.0 if self.modes < 2 else self.share_above(chunks)
        return min(share, 1 - share)


def _peaks(values: Points) -> tuple[Points, Points, NDArray[np.int64]]:
    places = np.linspace(values.min() - 1e-6, values.max() + 1e-6, 200)
    density = gaussian_kde(values)(places)
    padded = np.concatenate([[0.0], density, [0.0]])  # a peak may lie at the border
    return places, density, find_peaks(padded, prominence=0.2 * density.max())[0] - 1


def drawn(policy: DiffusionPolicy, sampler: Any, observation: Observation, count: int, seed: int) -> Points:
    """Played actions of ``count`` chunks, shape ``(count, n_action_steps * action_dim)``."""
    batch = {name: np.repeat(part, count, axis=0) for name, part in observation.items()}
    actions = policy.predict_action(batch, sampler, generator=torch.Generator().manual_seed(seed)).actions
    return np.asarray(actions, dtype=np.float64).reshape(count, -1)


def compared(axis: Axis, reference: Points, chunks: Points) -> dict[str, float]:
    """One sampler beside ``ddpm`` at one observation."""
    spread = float(np.sqrt(chunks.var(axis=0).sum() / reference.var(axis=0).sum()))
    return {
        "modes": len(_peaks(axis.along(chunks))[2]),
        "share": axis.share_above(chunks) if axis.modes > 1 else float("nan"),
        "spread": spread,
        "distance": energy_distance(chunks, reference).coefficient,
    }


def measured(task: str, count: int, most: int) -> tuple[dict[str, Any], list[dict[str, Points]]]:
    """Search and measurement; the numbers, and the chunks of the pictured observations."""
    checkpoint = ROOT / "checkpoints" / task
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    recorded = evenly(read_observations(RESULTS / task), most)
    samplers = {name: factories.load(name, policy) for name in SAMPLERS}
    with progress_bar("searching", len(recorded)) as bar:
        axes = []
        for place, observation in enumerate(recorded):
            found = drawn(policy, samplers["ddpm"], observation, count, 10_000 + place)
            axes.append((Axis.of(found), Axis.of(found).rarer(found)))
            bar.advance()
    order = sorted(range(len(recorded)), key=lambda place: -axes[place][1])
    rows: list[dict[str, Any]] = []
    pictures: list[dict[str, Points]] = []
    with progress_bar("measuring", len(order)) as bar:
        for rank, place in enumerate(order):
            observation, axis = recorded[place], axes[place][0]
            reference = drawn(policy, samplers["ddpm"], observation, count, 20_000 + place)
            chunks = {
                name: drawn(policy, sampler, observation, count, 30_000 + place) for name, sampler in samplers.items()
            }
            rows.append(
                {
                    "observation": place,
                    "modes": axis.modes,
                    "found_share": axes[place][1],
                    "share": axis.share_above(reference) if axis.modes > 1 else None,
                    "samplers": {name: compared(axis, reference, each) for name, each in chunks.items()},
                }
            )
            if rank < PICTURED:
                pictures.append(chunks)
            bar.advance()
    content = {
        "task": task,
        "chunks": count,
        "observations": len(recorded),
        "several_modes": sum(row["modes"] > 1 for row in rows),
        "rows": rows,
        "over_observations": {
            name: {
                what: list(mean_interval([row["samplers"][name][what] for row in rows]))
                for what in ("spread", "distance")
            }
            for name in SAMPLERS
        },
        "provenance": collect_provenance(os.path.relpath(checkpoint)),  # no path of this machine
    }
    return content, pictures


def table(content: dict[str, Any]) -> str:
    """All observations in the mean, and those with several modes one by one."""
    several = [row for row in content["rows"] if row["modes"] > 1][:SHOWN]
    lines = [
        f"| sampler | spread, × ddpm [95 %] | energy distance [95 %] |{' % in one of the modes |' if several else ''}",
        f"| --- | ---: | ---: |{' ---: |' if several else ''}",
    ]
    for name, found in content["over_observations"].items():
        spread, distance = (Estimate(*found[what]) for what in ("spread", "distance"))
        shares = ", ".join(f"{100 * row['samplers'][name]['share']:.0f}" for row in several)
        approximate = "" if not name.startswith("ddim") else " (approximate)"
        lines.append(
            f"| {name}{approximate} | {spread.value:.2f} [{spread.low:.2f}, {spread.high:.2f}] "
            f"| {distance.value:.3f} [{distance.low:.3f}, {distance.high:.3f}] |{f' {shares} |' if several else ''}"
        )
    lines += [
        "",
        f"{content['task']}: {content['chunks']} chunks at each of {content['observations']} recorded observations, "
        "beside as many fresh ones of ddpm, whose own row is chance alone. "
        + (
            f"{content['several_modes']} observations have several modes; shares at the {len(several)} of them that "
            "divide most evenly, in one order."
            if several
            else "At none of them has the density of the chunks' first principal component a second peak."
        ),
    ]
    return "\n".join(lines) + "\n"


def draw(content: dict[str, Any], pictures: list[dict[str, Points]], policy_dim: int, path: Path) -> None:
    """Played actions in the plane, a row for each pictured observation and a column for each sampler."""
    figure = Figure(figsize=(2.2 * len(SAMPLERS), 2.3 * len(pictures)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(pictures), len(SAMPLERS), sharex="row", sharey="row", squeeze=False)
    for row, chunks in enumerate(pictures):
        for panel, (name, points) in zip(panels[row], chunks.items(), strict=True):
            style_axes(panel)
            color = COLORS[2] if name.startswith("ddim") else COLORS[0]
            for chunk in points[:60].reshape(60, -1, policy_dim):
                panel.plot(chunk[:, 0], chunk[:, 1], color=color, alpha=0.35, lw=0.7)
            panel.set_aspect("equal", adjustable="box")
            panel.tick_params(labelsize=6)
            spread = content["rows"][row]["samplers"][name]["spread"]
            panel.set_title(
                f"{name}{' (approx.)' if name.startswith('ddim') else ''}, spread ×{spread:.2f}", fontsize=7.5
            )
        panels[row][0].set_ylabel(f"observation {content['rows'][row]['observation']}, pixels", fontsize=7, color=MUTED)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="pusht")
    parser.add_argument("--chunks", type=int, default=64, help="of each sampler at each observation")
    parser.add_argument("--observations", type=int, default=24, help="at most so many of the recorded ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content, pictures = measured(arguments.task, arguments.chunks, arguments.observations)
    folder = RESULTS / "modes"
    folder.mkdir(exist_ok=True)
    for name, text in (("table.md", table(content)), ("table.json", json.dumps(content, indent=1) + "\n")):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text.replace("NaN", "null"), encoding="utf-8")
    if arguments.task.startswith("pusht"):  # actions are places in the plane
        draw(content, pictures, 2, ROOT / "docs" / "assets" / "modes.png")
    print(table(content))


if __name__ == "__main__":
    main()
