"""The documents show what was measured, their links lead somewhere, and their snippets run as they are pasted."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from prepared_python import run_python

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SKIP = "# doc: skip"


def python_of(document: Path) -> list[str]:
    """The Python blocks of a document that need nothing which a test does not have."""
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for block in blocks if not block.startswith(SKIP)]


def console_of(document: Path) -> list[str]:
    """The ``specpolicy`` commands of a document, continued lines joined, comments cut off."""
    blocks = re.findall(r"^```console\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.startswith("specpolicy ")]


def test_the_documents_show_the_measured_tables() -> None:
    subprocess.run([sys.executable, ROOT / "benchmarks" / "readme_tables.py", "--check"], check=True)
    assert "<!-- readme -->\n| sampler" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if python_of(each)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_snippets_run_as_they_are_pasted(document: Path) -> None:
    done = run_python("\n".join(python_of(document)), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("command", sorted({line for document in DOCUMENTS for line in console_of(document)}))
def test_commands_of_the_documents_are_read(command: str) -> None:
    """Every option that a document names exists; values are not looked at."""
    from specpolicy.commands import COMMANDS
    from specpolicy.config import compose

    _, name, *overrides = shlex.split(command)
    if "COMMAND" in command or "…" in command:
        pytest.skip("a pattern, not a command")
    assert name in COMMANDS
    given = [each for each in overrides if "=" in each]
    lists = ("sampler", "task", "executor", "latency", "seeds", "repeats", "view")  # split by the commands themselves
    singles = []
    for each in given:
        key, _, value = each.partition("=")
        first = value.strip("[]").split(",")[0] if key in lists else value
        singles.append(f"{key}={'square' if (key, first) == ('task', 'all') else first}")
    compose(name, singles)


@pytest.mark.parametrize("name", ["sample_a_mixture.py", "act_on_an_observation.py"])
def test_examples_run(name: str) -> None:
    if name == "act_on_an_observation.py" and find_spec("robosuite") is None:
        pytest.skip("needs the simulator: pip install 'specpolicy[sim]'")
    file = ROOT / "examples" / name
    done = run_python(file.read_text(encoding="utf-8"), file, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("evaluations") == 3
