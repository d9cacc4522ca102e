"""What CUDA graphs capture reads no number and leaves nothing on the CPU: shown on a device that does not exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow  # traces every operation of the shipped samplers

ROOT = Path(__file__).parents[2]
# every kind of network, with what its samplers share with those of the others left out for one of them
SHIPPED = {
    "square": ("ddpm", "ddim10", "ddim5", "recycled", "free_block"),  # the first three are what a GPU run compares with
    "square_transformer": ("ddim5", "recycled", "analytic10_recycled"),
    "tool_hang": (),  # all of them
}

BROKEN = {"read": "DataDependentOutput", "cpu": "device"}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, int | str]]:
    """What one process finds in all jobs: by task, or by how the network was spoilt."""
    jobs = {task: (str(ROOT / "checkpoints" / task), names, None) for task, names in SHIPPED.items()}
    jobs |= {how: (str(ROOT / "checkpoints" / "tool_hang"), ("recycled20",), how) for how in BROKEN}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("imitated_gpu.py")), json.dumps(list(jobs.values()))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return dict(zip(jobs, json.loads(run.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("task", SHIPPED)
def test_shipped_samplers_stay_on_their_device(found: dict[str, dict[str, int | str]], task: str) -> None:
    operations = found[task]
    assert {name: told for name, told in operations.items() if not isinstance(told, int)} == {}
    assert set(SHIPPED[task]) <= set(operations) and all(int(told) > 30 for told in operations.values())
    if not SHIPPED[task]:
        assert {"ddpm", "asd", "free_block", "linear_block", "recycled20", "analytic10", "ddim2"} <= set(operations)


@pytest.mark.parametrize(("how", "told"), BROKEN.items())
def test_a_network_that_breaks_captures_is_found(found: dict[str, dict[str, int | str]], how: str, told: str) -> None:
    (message,) = found[how].values()
    assert isinstance(message, str) and told in message


def test_torch_has_what_this_rests_on() -> None:
    assert hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")
