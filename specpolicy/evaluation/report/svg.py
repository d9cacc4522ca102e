"""matplotlib's figures as inline SVG with the colours and fonts of the page, so that it is light or dark with it."""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

from ..looks import COLORS
from ..plot import GRID, MUTED

# What a figure is drawn with → the page's custom property that takes its place.
_PROPERTIES = {color.lower(): f"--s{index}" for index, color in enumerate(COLORS)} | {
    GRID: "--grid",
    MUTED: "--muted",
    "#ffffff": "--paper",
}


def inline_svg(figure: Figure, label: str, prefix: str) -> str:
    """The figure as an ``<svg>`` element for a page: texts as texts, no reference to anything outside.

    Args:
        figure: laid out; its background is left out.
        label: read to those who cannot see it.
        prefix: makes the ids inside unique on the page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "specpolicy"}):
        figure.savefig(buffer, format="svg", transparent=True)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    opening, rest = drawing.split(">", 1)
    opening = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", opening)
    rest = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", rest, flags=re.DOTALL)
    rest = re.sub(r"#[0-9a-f]{6}\b", lambda match: property_of(match[0]), rest)
    rest = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", rest)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', rest))
    rest = re.sub(r' id="([^"]+)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", rest)
    rest = re.sub(r'xlink:href="#|(?<=url\()#', lambda match: f"{match[0].removeprefix('xlink:')}{prefix}-", rest)
    rest = re.sub(r"\s*\n\s*", "\n", rest)
    return f'{opening} role="img" aria-label="{escape(label)}">{rest}'


def property_of(color: str) -> str:
    """The CSS value that takes the place of a colour on the page."""
    name = _PROPERTIES.get(color.lower())
    return f"var({name})" if name else color
