"""Whether images can be rendered on this machine, and with which OpenGL backend."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

_BACKENDS = {
    "linux": {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa", "glfw": "mujoco.glfw"},
    "darwin": {"cgl": "mujoco.cgl"},
    "win32": {"glfw": "mujoco.glfw"},
}
"""Platform → value of ``MUJOCO_GL`` → module with a ``GLContext``, the ones to try first in front."""

_SAME = {"glx": "glfw", "wgl": "glfw", "enable": "", "enabled": "", "on": "", "true": "", "1": ""}
"""Other values that MuJoCo takes, and what they mean; the empty one leaves the choice open."""

_PROBE = """
import importlib, os, sys
import mujoco
context = importlib.import_module(sys.argv[1]).GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100.value)
print("works", flush=True)
os._exit(0)  # the destructors of some drivers complain
"""


class RenderingUnavailable(RuntimeError):
    """No OpenGL backend can draw an image on this machine."""


def rendering_available() -> bool:
    """Whether images can be rendered here; a second or two at the first call, nothing afterwards."""
    return rendering_problem() is None


def rendering_problem() -> str | None:
    """Why images cannot be rendered here, in one line, or None if they can. Never raises, never crashes the process."""
    try:
        opengl_module()
    except RenderingUnavailable as error:
        return str(error)
    return None


def opengl_module() -> str:
    """Name of the module of MuJoCo whose ``GLContext`` works here: the one that ``MUJOCO_GL`` asks for, or the first.

    Raises:
        RenderingUnavailable: none works; the message says why and what to install.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    known = _BACKENDS.get(sys.platform, {})
    choice = _SAME.get(wanted, wanted)
    if choice and choice not in known:
        raise RenderingUnavailable(
            f"rendering is off: MUJOCO_GL={wanted} is not one of {', '.join(known)}; set it to one of them, or unset it"
        )
    failures = []
    for name, module in known.items():
        if choice in ("", name):
            failure = _failure(module)
            if failure is None:
                return module
            failures.append(f"{name}: {failure}")
    raise RenderingUnavailable(
        f"no OpenGL backend works here ({'; '.join(failures)}); on Linux without a display, "
        "apt-get install libegl1 or libosmesa6 and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
    )


@cache
def _failure(module: str) -> str | None:
    """What goes wrong when ``module`` makes a context in a process of its own, where a driver's crash does no harm."""
    command = [sys.executable, "-c", _PROBE, module]
    environment = {**os.environ, "MUJOCO_GL": "disable"}  # importing MuJoCo must not load a backend by itself
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if "works" in done.stdout:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
