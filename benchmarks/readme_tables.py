"""Put the measured tables into the documents that quote them; ``--check`` only compares.

A document marks the place with ``<!-- NAME -->`` and ``<!-- /NAME -->``; the table is
``benchmarks/results/NAME/table.md``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "checkpoints" / "square" / "README.md"]
RESULTS = ROOT / "benchmarks" / "results"


def filled(text: str) -> str:
    """``text`` with every marked place holding the table of its results folder."""
    for folder in sorted(path for path in RESULTS.iterdir() if (path / "table.md").exists()):
        table = (folder / "table.md").read_text(encoding="utf-8").strip()
        place = re.compile(rf"(<!-- {folder.name} -->\n).*?(<!-- /{folder.name} -->)", re.DOTALL)
        text = place.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    stale = [document for document in DOCUMENTS if filled(document.read_text(encoding="utf-8")) != document.read_text()]
    for document in stale:
        print(f"{document.name} does not show the measured tables")
        if "--check" not in sys.argv:
            document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")
            print(f"{document.name} rewritten")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
