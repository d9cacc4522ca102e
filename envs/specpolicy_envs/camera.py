"""Images of a MuJoCo scene."""

from __future__ import annotations

import atexit
import importlib
from functools import cache
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from .rendering import RenderingUnavailable, opengl_module
from .simulator import load_mujoco

_COLLISION_GEOMS = 0  # robosuite's group of the geoms that collide; those made to be seen are in group 1
_MAX_GEOMS = 10_000


class Camera:
    """A fixed camera of a model; OpenGL is touched at the first :meth:`image`.

    Args:
        name: the camera's name in the model.
        size: height and width of the image, pixels.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._model: Any = None
        self._context: Any = None
        self._buffers: Any = None

    def image(self, model: Any, data: Any) -> NDArray[np.uint8]:
        """The scene in ``data``, shape ``(size, size, 3)``, the top row first.

        Raises:
            RenderingUnavailable: no OpenGL backend works.
        """
        mujoco = load_mujoco()
        if model is not self._model:
            self.close()
            self._open(model)
        self._context.make_current()
        view = mujoco.MjrRect(0, 0, self._size, self._size)
        pixels = np.empty((self._size, self._size, 3), dtype=np.uint8)
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
        frame.offwidth, frame.offheight = max(frame.offwidth, self._size), max(frame.offheight, self._size)
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
