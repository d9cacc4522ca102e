"""Missing dependencies are reported by the extra that brings them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from specpolicy.utils.extras import require


def test_an_installed_module_is_returned() -> None:
    assert require("json", "eval").dumps([1]) == "[1]"


def test_a_missing_one_names_the_extra() -> None:
    with pytest.raises(ImportError, match=r"no_such_module.*pip install 'specpolicy\[eval\]'"):
        require("no_such_module", "eval")


MISSING = """
import importlib, sys
for module in ("scipy", "pyarrow", "matplotlib", "imageio_ffmpeg"):
    sys.modules[module] = None
    try:
        importlib.import_module("specpolicy.evaluation.results")
    except ImportError as error:
        assert str(error).startswith(f"{module} could not be imported"), error
        assert "pip install 'specpolicy[eval]'" in str(error), error
    else:
        raise AssertionError(f"imported without {module}")
    del sys.modules[module]
import specpolicy.evaluation
"""


def test_evaluation_without_a_dependency_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
