"""One panel of a clip: title, image, clock, and a strip of waiting and moving."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .timeline import Moment, Take

_BACKGROUND, _INK, _FAINT = (250, 250, 250), (20, 20, 20), (110, 110, 110)
_STATE_COLORS = {"thinking": (213, 94, 0), "moving": (0, 114, 178), "done": (225, 225, 225)}
_SUCCESS, _FAILURE = (0, 130, 90), (170, 30, 30)
_MARGIN, _HEADER, _FOOTER, _LEAST_WIDTH = 8, 50, 50, 320


def draw_panel(take: Take, moment: Moment, history: Sequence[str], length: int) -> NDArray[np.uint8]:
    """Image of one take at one moment, sides of even length, at least 320 pixels wide.

    Args:
        take: whose title and caption to write.
        moment: what to show.
        history: states at every tick up to now, drawn as a strip.
        length: ticks of the whole clip, the strip's full width.
    """
    scale = max(1, -(-_LEAST_WIDTH // moment.frame.shape[1]))  # small images grow by whole pixels
    frame = np.repeat(np.repeat(moment.frame, scale, axis=0), scale, axis=1)
    height, width = frame.shape[:2]
    panel = Image.new("RGB", (_even(width + 2 * _MARGIN), _even(height + _HEADER + _FOOTER)), _BACKGROUND)
    panel.paste(Image.fromarray(frame), (_MARGIN, _HEADER))
    draw = ImageDraw.Draw(panel)
    draw.text((_MARGIN, 6), take.title, fill=_INK, font=_font(18, bold=True))
    draw.text((_MARGIN, 29), take.caption, fill=_FAINT, font=_font(12))
    _strip(draw, history, length, _MARGIN, _HEADER + height + 6, width)
    words, color = _status(take, moment)
    baseline = _HEADER + height + 23
    draw.text((_MARGIN, baseline), words, fill=color, font=_font(15, bold=True))
    draw.text((_MARGIN + width, baseline), f"{moment.time_s:.1f} s", fill=_INK, font=_font(15), anchor="ra")
    return np.asarray(panel, dtype=np.uint8)


def _status(take: Take, moment: Moment) -> tuple[str, tuple[int, int, int]]:
    if moment.state == "done":
        return ("success", _SUCCESS) if take.success else ("failure", _FAILURE)
    return moment.state, _STATE_COLORS[moment.state]


def _strip(draw: ImageDraw.ImageDraw, history: Sequence[str], length: int, left: int, top: int, width: int) -> None:
    draw.rectangle((left, top, left + width - 1, top + 9), fill=_STATE_COLORS["done"])
    for tick, state in enumerate(history):
        if state != "done":
            from_x, to_x = left + tick * width / length, left + (tick + 1) * width / length
            draw.rectangle(
                (round(from_x), top, max(round(from_x), round(to_x) - 1), top + 9), fill=_STATE_COLORS[state]
            )


@lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _even(length: int) -> int:
    return length + length % 2
