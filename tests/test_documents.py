"""What the documents say is what was measured, and their examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_readme_shows_the_measured_tables() -> None:
    subprocess.run([sys.executable, ROOT / "benchmarks" / "readme_tables.py", "--check"], check=True)
    assert "<!-- square -->\n| sampler" in (ROOT / "README.md").read_text()


def test_the_readme_links_to_files_that_exist() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_readme_library_example_runs() -> None:
    example = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    setup = "import torch\nnetwork = lambda x, t, c: 0.1 * x\nobservation = torch.zeros(1, 4)\n"
    subprocess.run([sys.executable, "-c", setup + example + "\nassert int(result.passes) < 60"], check=True)


@pytest.mark.parametrize("name", ["sample_a_mixture.py", "act_on_an_observation.py"])
def test_examples_run(name: str) -> None:
    if name == "act_on_an_observation.py" and find_spec("robosuite") is None:
        pytest.skip("needs the simulator: pip install 'specpolicy[sim]'")
    done = subprocess.run([sys.executable, f"examples/{name}"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.count("passes") == 3
