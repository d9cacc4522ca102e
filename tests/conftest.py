"""Shared by all tests: shapes are checked at run time, and one torch thread keeps the results steady."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# While a module is imported under the hook below, whatever it imports is compiled anew; not so what is there already.
import diffusers.utils.torch_utils  # noqa: F401
import gymnasium  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import torch._dynamo
from jaxtyping import install_import_hook

# Must come before specpolicy is imported: checks every annotated shape on every call.
install_import_hook(["specpolicy.speculative", "specpolicy.policies"], "beartype.beartype")

torch.set_num_threads(1)

REAL_CLOCK = {"serving", "control", "evaluation", "ros"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what meets sockets, other processes and the real clock try again, once the machine has had time to breathe.

    The distribution of samplers is tested with fixed seeds, and once.
    """
    for item in items:
        if REAL_CLOCK & set(item.path.relative_to(Path(__file__).parent).parts):  # wherever the checkout lies
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=5))


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """No shapes are checked: for tests that repeat, many hundred times, calls that others make with the checks on."""
    from specpolicy.speculative.compiled.openvino_network import unchecked_annotations

    with unchecked_annotations():
        yield
