"""Optional dependencies, asked for by the name of the extra that installs them."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of this package brings it.

    Args:
        module: importable name, e.g. ``"pyarrow.parquet"``.
        extra: the extra in whose requirements it is, e.g. ``"eval"``.

    Returns:
        The imported module.

    Raises:
        ImportError: it is not installed, or its own import fails; the message gives the ``pip`` line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} could not be imported ({error}). It belongs to the extra {extra!r}: "
            f"pip install 'specpolicy[{extra}]'",
            name=module,
        ) from error


def require_all(modules: tuple[str, ...], extra: str) -> None:
    """Check that ``modules`` are installed without importing them: workers do not need most of them.

    Args:
        modules: importable names, top level.
        extra: the extra in whose requirements they are.

    Raises:
        ImportError: one of them is not installed; the message gives the ``pip`` line.
    """
    for module in modules:
        if find_spec(module) is None:
            require(module, extra)
