"""How a sampler looks in every picture: its colour, its name, and what tells an approximate one from an exact one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .summary import SummaryRow

# Okabe and Ito's colours and further ones between them, told apart by colour-blind readers too; black for the
# reference, which comes first.
COLORS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D00", "#3FA0D8", "#7A4FBF", "#9C3D3D", "#5B7F00",
    "#D4006A", "#00696B", "#8A8A8A", "#E0A100",
)  # fmt: skip
PAPER = "white"


@dataclass(frozen=True)
class Look:
    """One sampler's.

    Attributes:
        color: of points, lines and labels.
        label: the name, with a mark if the sampler is approximate.
        exact: None where unknown; approximate ones are hollow and dashed.
    """

    color: str
    label: str
    exact: bool | None

    @property
    def face(self) -> str:
        """What points are filled with."""
        return PAPER if self.exact is False else self.color

    @property
    def line(self) -> str:
        """matplotlib's line style."""
        return "--" if self.exact is False else "-"


def looks_of(rows: Sequence[SummaryRow], cast: Sequence[str] = ()) -> dict[str, Look]:
    """A look for each sampler of the rows; those of a ``cast`` keep their colours from one task to the next."""
    order = list(dict.fromkeys([*cast, *(row.sampler for row in rows)]))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(order)}
    return {row.sampler: Look(colors[row.sampler], marked_name(row), row.exact) for row in rows}


def marked_name(row: SummaryRow) -> str:
    """The sampler's name, followed by "(approx.)" if it is approximate."""
    return f"{row.sampler} (approx.)" if row.exact is False else row.sampler
