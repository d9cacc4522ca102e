"""A sheet of images, and how far drafts were kept along the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from .record import Batch

PARTS = 20


def image_grid(rows: Mapping[str, Sequence[Path]], least: int = 64) -> Image.Image:
    """One row of images for each sampler, with its name above.

    Args:
        rows: image files by sampler; all of one size.
        least: smaller images are enlarged to at least so many pixels, by whole factors.
    """
    with Image.open(next(iter(rows.values()))[0]) as first:
        width, height = first.size
    factor = max(1, -(-least // max(width, height)))
    width, height, gap, head = width * factor, height * factor, 4, 16
    columns = max(len(files) for files in rows.values())
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + head + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, files) in enumerate(rows.items()):
        top = row * (height + head + gap)
        pen.text((gap, top + 2), name, fill="black")
        for column, file in enumerate(files):
            with Image.open(file) as image:
                shown = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (gap + column * (width + gap), top + head))
    return sheet


def acceptance_figure(results: Mapping[str, Sequence[Batch]]) -> Figure:
    """Left: drafted and kept steps a round along the chain. Right: passes and rows of an image, in chain lengths."""
    figure = Figure(figsize=(9, 3.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    along, spent = figure.subplots(1, 2)
    for number, (name, batches) in enumerate(results.items()):
        colour = f"C{number % 10}"
        entries = np.array([entry for each in batches for image in each.rounds for entry in image], dtype=float)
        if len(entries):
            steps = batches[0].steps
            part = np.minimum(entries[:, 0] * PARTS // steps, PARTS - 1)
            here = [part == each for each in range(PARTS)]
            middle = (np.arange(PARTS) + 0.5) / PARTS
            for column, style, what in ((1, ":", "drafted"), (2, "-", "kept")):
                mean = [entries[at, column].mean() if at.any() else np.nan for at in here]
                along.plot(middle, mean, style, color=colour, marker=".", label=f"{name}, {what}")
        shares = [
            np.mean([n for each in batches for n in getattr(each, kind)]) / batches[0].steps
            for kind in ("passes", "evaluations")
        ]
        spent.bar([number - 0.2, number + 0.2], shares, width=0.38, color=[colour, "lightgrey"], edgecolor=colour)
    along.set(xlabel="position in the chain (0 is noise)", ylabel="steps a round", ylim=(0, None))
    if along.get_legend_handles_labels()[0]:
        along.legend(fontsize=8)
    spent.axhline(1.0, color="black", linewidth=0.8)
    spent.set_xticks(range(len(results)), list(results))
    spent.set(ylabel="share of the chain's steps", title="passes (full) and rows (grey)")
    return figure
