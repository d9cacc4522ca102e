"""Whether images can be rendered on this machine, and with which OpenGL backend."""

from __future__ import annotations

import atexit
import importlib
import os
import subprocess
import sys
from functools import cache
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from specpolicy_envs.simulator import load_mujoco

_COLLISION_GEOMS = 0  # robosuite's group of the geoms that collide; those made to be seen are in group 1
_MAX_GEOMS = 10_000


class Camera:
    """A fixed camera of a model; OpenGL is touched at the first :meth:`image`.

    Args:
        name: the camera's name in the model.
        size: height of the image, and its width unless that is given, pixels.
        width: of the image, pixels.
    """

    def __init__(self, name: str, size: int, width: int | None = None) -> None:
        self._name = name
        self._height, self._width = size, size if width is None else width
        self._model: Any = None
        self._context: Any = None
        self._buffers: Any = None

    def image(self, model: Any, data: Any) -> NDArray[np.uint8]:
        """The scene in ``data``, shape ``(height, width, 3)``, the top row first.

        Raises:
            RenderingUnavailable: no OpenGL backend works.
        """
        mujoco = load_mujoco()
        if model is not self._model:
            self.close()
            self._open(model)
        self._context.make_current()
        view = mujoco.MjrRect(0, 0, self._width, self._height)
        pixels = np.empty((self._height, self._width, 3), dtype=np.uint8)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._options, None, self._viewpoint, everything, self._scene)
        mujoco.mjr_render(view, self._scene, self._buffers)
        mujoco.mjr_readPixels(pixels, None, view, self._buffers)
        return np.flipud(pixels).copy()  # OpenGL counts rows from the bottom

    def close(self) -> None:
        """Free the image buffers; another image opens them again."""
        if self._context is not None:
            self._context.make_current()
            if self._buffers is not None:
                self._buffers.free()
            self._context.free()
        self._model = self._context = self._buffers = None

    def __del__(self) -> None:
        self.close()

    def _open(self, model: Any) -> None:
        mujoco = load_mujoco()
        module = opengl_module()
        frame = model.vis.global_
        frame.offwidth, frame.offheight = max(frame.offwidth, self._width), max(frame.offheight, self._height)
        try:
            self._context = importlib.import_module(module).GLContext(frame.offwidth, frame.offheight)
            self._context.make_current()
            self._buffers = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:
            raise RenderingUnavailable(
                f"{module} works in a process of its own but not in this one: {error}"
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._buffers)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[_COLLISION_GEOMS] = 0
        self._viewpoint = mujoco.MjvCamera()
        self._viewpoint.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewpoint.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, self._name)
        self._model = model
        _open_cameras.add(self)
        _close_cameras_at_exit()


_open_cameras: WeakSet[Camera] = WeakSet()


@cache
def _close_cameras_at_exit() -> None:
    """Close what is open before MuJoCo ends EGL: exit handlers run last in, first out, and that one is in by now."""
    atexit.register(_close_cameras)


def _close_cameras() -> None:
    for camera in list(_open_cameras):
        camera.close()


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
