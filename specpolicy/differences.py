"""Saying in what two settings differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each entry in which two nested mappings differ, sorted by its name; empty if they are equal."""
    mine, theirs = flatten(there), flatten(now)
    values = {key: (mine.get(key, _ABSENT), theirs.get(key, _ABSENT)) for key in sorted(mine.keys() | theirs.keys())}
    return [f"  {key}: {before!r} there, {after!r} now" for key, (before, after) in values.items() if before != after]
