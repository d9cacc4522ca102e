"""Gymnasium's interface over a robosuite task."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from .actions import checked_action
from .camera import Camera
from .observables import observe
from .physics import advance, get_state, set_state
from .randomness import seeded_global_numpy
from .simulator import load_robosuite
from .task import RobosuiteTask

Observation = dict[str, NDArray[np.float64]]

_MODEL_SEED = 0
"""Seeds what robosuite draws while it builds a model (a hammer's size, say), so that every process builds the same."""


class RobosuiteEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """A robosuite task with sparse success.

    A subclass names its :class:`RobosuiteTask` and that is all.

    Observation: ``Dict`` of float64 arrays named and ordered as ``task.observations``. They describe the state that
    ``step`` ends in, as the observations of Robomimic's datasets describe their states. (What robosuite's own ``step``
    returns is one physics step, 2 ms, older.)

    Action: ``Box(-1, 1, (action_dim,), float32)``. Values outside are clipped; a wrong shape or a NaN is an error.

    Reward 1 and ``terminated`` at the first step that succeeds, 0 and False otherwise. ``info["success"]`` is a bool,
    after ``reset`` too. The longest episode is the registered ``max_episode_steps``, which ``gym.make`` enforces.

    Args:
        render_mode: None or ``"rgb_array"``. OpenGL is touched at the first ``render``, and only then.
        image_size: height and width of a rendered image, pixels.
        camera: name of a camera of the task's model; None for the task's own.

    Raises:
        ImportError: the simulator is missing or has an unsuitable version; the message says what to install.
        ValueError: an argument is not one of those above.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's own type)
    task: ClassVar[RobosuiteTask]

    def __init__(self, render_mode: str | None = None, image_size: int = 256, camera: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', not {render_mode!r}")
        if image_size < 1:
            raise ValueError(f"image_size must be a positive number of pixels, not {image_size}")
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            [(name, spaces.Box(-np.inf, np.inf, (dim,), np.float64)) for name, dim in self.task.observations.items()]
        )
        self._actions = spaces.Box(-1.0, 1.0, (self.task.action_dim,), np.float32)
        self.action_space = self._actions
        with seeded_global_numpy(_MODEL_SEED):
            self._robosuite = load_robosuite().make(**self.task.robosuite_arguments())
        self._camera = Camera(self._checked_camera(camera), image_size)
        self._is_reset = False

    @property
    def robosuite(self) -> Any:
        """The robosuite environment underneath, for what gymnasium's interface leaves out: poses, contacts, names."""
        return self._robosuite

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: names the initial state, bit for bit, whatever was played before and in whichever process; it is
                the state of ``numpy.random.seed(seed)`` followed by robosuite's own reset. None goes on with the
                stream of the last seed.
            options: ``{"state": array}`` begins at a recorded state instead; see :meth:`state`.

        Raises:
            ValueError: an unknown option, or a state of the wrong shape or with NaN.
        """
        unknown = set(options or ()) - {"state"}
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}; the only one is 'state'")
        super().reset(seed=seed)
        with seeded_global_numpy(int(self.np_random.integers(2**32)) if seed is None else seed):
            self._robosuite.reset()
        if options and "state" in options:
            set_state(self._robosuite, options["state"])
        self._is_reset = True
        observation, success = observe(self._robosuite, self.task.observations)
        return observation, {"success": success}

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step; see the class for what comes back.

        Raises:
            ValueError: an action of the wrong shape, or with NaN or infinity.
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if not self._is_reset:
            raise ResetNeeded("call reset() before step()")
        advance(self._robosuite, checked_action(action, self._actions.low, self._actions.high))
        observation, success = observe(self._robosuite, self.task.observations)
        return observation, float(success), success, False, {"success": success}

    def state(self) -> NDArray[np.float64]:
        """Time, joint positions and velocities, flat, as robosuite and Robomimic's datasets record states.

        ``reset(options={"state": ...})`` brings them back, observation and all. Not in it, and so begun afresh there:
        how far the gripper's command has ramped, and the posture that the controller prefers, which becomes the
        restored one. Nor does it hold what a task draws with its model (Transport's hammer): pass the seed of the
        state's own episode along, and that comes back too.
        """
        return get_state(self._robosuite)

    def render(self) -> NDArray[np.uint8] | None:
        """The scene as the camera sees it, shape ``(image_size, image_size, 3)``; None without a render mode.

        Raises:
            RenderingUnavailable: no OpenGL backend works on this machine; the message says what to install.
        """
        if self.render_mode is None:
            gym.logger.warn("render() needs gym.make(..., render_mode='rgb_array')")
            return None
        sim = self._robosuite.sim
        return self._camera.image(sim.model._model, sim.data._data)

    def close(self) -> None:
        """Free the image buffers; the simulation goes with the object."""
        self._camera.close()

    def _checked_camera(self, camera: str | None) -> str:
        names = list(self._robosuite.sim.model.camera_names)
        chosen = self.task.camera if camera is None else camera
        if chosen not in names:
            raise ValueError(f"{self.task.name} has no camera {chosen!r}; it has {', '.join(names)}")
        return chosen
