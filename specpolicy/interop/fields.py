"""Read the fields of a configuration that others wrote, with a message that names the field where one is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specpolicy.interop.checkpoint_files import comma_list, refuse

_ABSENT: Any = object()
_REFERENCE = re.compile(r"\$\{([A-Za-z0-9_.]+)\}")


class Fields:
    """A mapping from a configuration file, read field by field.

    Args:
        file: for messages.
        values: the mapping.
        where: dotted path of the mapping within the file.
        root: the whole configuration, for plain references ``${a.b}`` in it. None: strings are taken as they are.

    A field that holds a reference which cannot be looked up, or an expression, counts as absent: nothing is evaluated.
    """

    def __init__(self, file: Path, values: Any, where: str = "", root: Mapping[str, Any] | None = None) -> None:
        if not isinstance(values, Mapping):
            refuse(file, f"{where or 'the configuration'} is a {type(values).__name__}; expected a mapping")
        self.file, self.values, self.where, self.root = file, values, where, root

    def name(self, key: str) -> str:
        """Dotted name of a field within the file."""
        return f"{self.where}.{key}" if self.where else key

    def has(self, key: str) -> bool:
        """Tell whether a field is there and not null."""
        return self._look_up(key) is not None

    def raw(self, key: str, default: Any = None) -> Any:
        """Return a field as it is; ``default`` if it is absent or null."""
        value = self._look_up(key)
        return default if value is None else value

    def part(self, key: str) -> Fields:
        """Read a nested mapping; an absent one is empty."""
        return Fields(self.file, self.raw(key, {}), self.name(key), self.root)

    def integer(self, key: str, default: int = _ABSENT, least: int = 1, most: int = 1_000_000) -> int:
        """Read a whole number from ``least`` to ``most``."""
        value = self._required(key, default, f"a whole number from {least} to {most}")
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not whole or value != int(value):
            self.wrong(key, f"a whole number from {least} to {most}")
        if not least <= value <= most:
            self.wrong(key, f"a whole number from {least} to {most}")
        return int(value)

    def number(self, key: str, default: float = _ABSENT) -> float:
        """Read a finite number."""
        value = self._required(key, default, "a finite number")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool = _ABSENT) -> bool:
        """Read true or false."""
        value = self._required(key, default, "true or false")
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str = _ABSENT, options: Sequence[str] | None = None) -> str:
        """Read a string, one of ``options`` if given."""
        expected = "one of " + ", ".join(options) if options else "a string"
        value = self._required(key, default, expected)
        if not isinstance(value, str) or (options is not None and value not in options):
            self.wrong(key, expected)
        return value

    def integers(self, key: str, default: Sequence[int] = _ABSENT, length: int | None = None) -> tuple[int, ...]:
        """Read a list of positive whole numbers, of ``length`` if given."""
        expected = f"a list of {'' if length is None else f'{length} '}positive whole numbers"
        value = self._required(key, default, expected)
        if (
            not isinstance(value, (list, tuple))
            or any(isinstance(part, bool) or not isinstance(part, int) or part < 1 for part in value)
            or (length is not None and len(value) != length)
        ):
            self.wrong(key, expected)
        return tuple(value)

    def names(self, key: str, default: Sequence[str] = _ABSENT) -> list[str]:
        """Read a list of strings."""
        value = self._required(key, default, "a list of names")
        if not isinstance(value, (list, tuple)) or any(not isinstance(part, str) for part in value):
            self.wrong(key, "a list of names")
        return list(value)

    def wrong(self, key: str, expected: str) -> Any:
        """Refuse a field that is there but not as expected."""
        shown = repr(self._look_up(key))
        refuse(self.file, f"{self.name(key)} is {shown if len(shown) < 100 else shown[:99] + '…'}; expected {expected}")

    def _required(self, key: str, default: Any, expected: str) -> Any:
        value = self._look_up(key)
        if value is not None:
            return value
        if default is _ABSENT:
            there = comma_list(sorted(map(str, self.values)))
            refuse(self.file, f"{self.name(key)} is missing; expected {expected} (there: {there})")
        return default

    def _look_up(self, key: str) -> Any:
        value = self.values.get(key)
        if self.root is None:
            return value
        for _ in range(8):  # references to references, but no circle
            if not isinstance(value, str) or "${" not in value:
                return value
            whole = _REFERENCE.fullmatch(value)
            if whole is None:
                return None
            value = self.root
            for step in whole[1].split("."):
                value = value.get(step) if isinstance(value, Mapping) else None
        return None
