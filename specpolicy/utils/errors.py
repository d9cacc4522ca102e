"""Explain other libraries' exceptions in one line, with the option that led there."""

from __future__ import annotations

import dis
import errno
import os
import traceback
from collections.abc import Mapping
from types import TracebackType

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the command again, it goes on where it stopped",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again, it goes on where it stopped",
    errno.EACCES: "permission denied; choose a path that this user may read and write",
    errno.EPERM: "permission denied; choose a path that this user may read and write",
    errno.EROFS: "the file system is read-only; choose another path",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EEXIST: "a file stands where a folder is needed; choose another path",
    errno.EISDIR: "a folder stands where a file is needed; choose another path",
    errno.ENOENT: "no such file or folder; check the path",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
    errno.EADDRINUSE: "the address is in use; stop the other program or choose another port",
    errno.EADDRNOTAVAIL: "this machine does not have that address; check host",
    errno.EMFILE: "too many open files; lower num_envs or raise `ulimit -n`",
    errno.ENOMEM: "out of memory; lower num_envs or the batch size",
}


_RAISE = (dis.opmap["RAISE_VARARGS"], dis.opmap["RERAISE"])


def one_line(text: object, most: int | None = None) -> str:
    """Join the lines of a message; an exception without one is named by its type.

    Args:
        text: a message or an exception.
        most: characters at most; None for all.
    """
    joined = " ".join(str(text).split())[:most]
    return type(text).__name__ if not joined and isinstance(text, BaseException) else joined


def raised_in(error: BaseException) -> str:
    """Name the module in which an exception was raised, ``""`` if it is not known."""
    trace = _innermost(error)
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def is_ours(error: BaseException) -> bool:
    """Tell whether this library raised the exception, with a message for the user.

    Compiled code, torch's and numpy's included, has no frames of its own: what it raises seems to come from the line of
    ours that called it. Only a ``raise`` statement is ours.

    Args:
        error: that was caught.
    """
    trace = _innermost(error)
    if trace is None or raised_in(error).split(".")[0] not in ("specpolicy", "specpolicy_envs"):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] in _RAISE


def _innermost(error: BaseException) -> TracebackType | None:
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def explain(error: BaseException, options: Mapping[str, str] | None = None) -> str:
    """Say in one line what went wrong, where, and what to do.

    Args:
        error: any exception.
        options: ``name: value`` of the command line, to name the one that led to the error.

    Returns:
        The message, without ``error:``.
    """
    options = options or {}
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else None
        advice = _ADVICE.get(error.errno, one_line(error.strerror or error))
        if path is None:
            return advice if error.errno in _ADVICE else one_line(error)
        named = os.fsdecode(path)
        option = option_of_path(named, options)
        return f"{option + ': ' if option else ''}{named}: {advice}"
    if is_ours(error):
        return one_line(error)
    text = one_line(error)
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return f"out of memory ({text or 'no details'}); lower num_envs, the batch size or the network's width"
    if _mentions_device(text) and "device" in options:
        return f"device={options['device']}: {text}; use device=cpu, or a device that `torch` can reach"
    module = raised_in(error).split(".")[0] or "an unknown module"
    return f"unexpected {type(error).__name__} in {module}: {text or 'no message'}; --debug shows where"


def option_of_path(path: str, options: Mapping[str, str]) -> str:
    """Find the option ``name=value`` whose value is ``path`` or lies above it; ``""`` if there is none."""
    absolute = os.path.abspath(path)
    best = ""
    for name, value in options.items():
        given = os.path.abspath(value.strip("'\"")) if value else ""
        longer = len(given) > len(os.path.abspath(best.partition("=")[2])) if best else True
        if given and (absolute == given or absolute.startswith(given.rstrip(os.sep) + os.sep)) and longer:
            best = f"{name}={value}"
    return best


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


def traceback_of(error: BaseException) -> str:
    """Format the traceback of an exception, as Python prints it."""
    return "".join(traceback.format_exception(error))


def _mentions_device(text: str) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in ("cuda", "device string", "device type", "mps", "nvidia"))
