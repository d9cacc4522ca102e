"""Exceptions as text."""

from __future__ import annotations

import os
import traceback


def format_exception(error: BaseException) -> str:
    """Write type, message and innermost place of an exception in one line.

    Args:
        error: the exception.

    Returns:
        E.g. ``"ValueError: no such key (reader.py:12)"``.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
