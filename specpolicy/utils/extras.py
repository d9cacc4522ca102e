"""Optional dependencies, asked for by the name of the extra that installs them."""

from __future__ import annotations

import importlib
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
