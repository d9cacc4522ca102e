"""Importing robosuite: the right versions, without OpenGL, and without its notices."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

ROBOSUITE = "1.4.1"
MUJOCO_BELOW = (3, 10)  # there mj_fullM takes other arguments and, soon after, MjData.qM is gone: robosuite calls both
TESTED_MUJOCO = "3.3.7"
INSTALL = 'pip install "specpolicy[sim]"'


@cache
def load_robosuite() -> Any:
    """robosuite, imported once.

    Raises:
        ImportError: it or MuJoCo is missing, or has a version that does not work; the message says what to install.
    """
    check_versions()
    load_mujoco()
    with _without_notices(), _without_opengl(), _without_opencv():
        return importlib.import_module("robosuite")


@cache
def load_mujoco() -> Any:
    """MuJoCo, imported once; where the backend that ``MUJOCO_GL`` names is broken, imported without rendering."""
    try:
        return importlib.import_module("mujoco")
    except Exception:
        # MuJoCo loads the chosen OpenGL library on import; only rendering needs it, and rendering reports it better
        with _environment(MUJOCO_GL="disable"):
            return importlib.import_module("mujoco")


def check_versions() -> None:
    """Refuse what is known not to work.

    Raises:
        ImportError: robosuite or MuJoCo is not installed or has an unsuitable version.
    """
    robosuite, mujoco = _version("robosuite"), _version("mujoco")
    if robosuite != ROBOSUITE:
        raise ImportError(
            f"the Robomimic environments need robosuite {ROBOSUITE}, but version {robosuite} is installed: {INSTALL}"
        )
    if tuple(int(part) for part in re.findall(r"\d+", mujoco)[:2]) >= MUJOCO_BELOW:
        raise ImportError(
            f"robosuite {ROBOSUITE} does not work with mujoco {mujoco}; it works with versions before "
            f"{'.'.join(map(str, MUJOCO_BELOW))}, tested with {TESTED_MUJOCO}: pip install mujoco=={TESTED_MUJOCO}"
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            f"the Robomimic environments need {package}, which is not installed: {INSTALL}", name=package
        ) from error


@contextmanager
def _without_notices() -> Iterator[None]:
    """Drop what robosuite logs about its optional file of private macros; every other record is kept."""

    def is_no_notice(record: logging.LogRecord) -> bool:
        return record.module != "macros"

    logger = logging.getLogger("robosuite_logs")
    logger.addFilter(is_no_notice)
    try:
        yield
    finally:
        logger.removeFilter(is_no_notice)


@contextmanager
def _without_opengl() -> Iterator[None]:
    """Keep robosuite from loading EGL and from writing ``MUJOCO_GL`` and ``PYOPENGL_PLATFORM`` into the environment.

    On Linux it insists on EGL unless told ``osmesa`` or ``glx``; ``glx`` loads no OpenGL library before a window opens.
    Images are rendered by :mod:`specpolicy_envs.rendering`, which picks its own backend.
    """
    if sys.platform != "linux":
        yield
        return
    with _environment(MUJOCO_GL="glx"):
        yield


@contextmanager
def _without_opencv() -> Iterator[None]:
    """Where OpenCV cannot be imported, let robosuite import an empty module: only its on-screen viewer needs OpenCV.

    The usual reason is a container without ``libGL.so.1``, which the wheels of ``opencv-python`` link to.
    """
    try:
        importlib.import_module("cv2")
    except ImportError:
        sys.modules["cv2"] = ModuleType("cv2")
        try:
            yield
        finally:
            del sys.modules["cv2"]
    else:
        yield


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
