"""Gymnasium's interface over a robosuite task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from specpolicy_envs.fast_stepping import advance, get_state, set_state
from specpolicy_envs.rendering import Camera
from specpolicy_envs.simulator import load_robosuite


@contextmanager
def seeded_global_numpy(seed: int) -> Iterator[None]:
    """Seed ``numpy.random`` inside the block and put its former state back afterwards.

    robosuite draws initial poses and object shapes from the global generator and offers no other way to seed them.

    Args:
        seed: any integer ≥ 0. Below 2³² it means what ``numpy.random.seed(seed)`` means, so that a seed names the same
            initial state as in evaluations that call that; larger ones are hashed.
    """
    former = np.random.get_state()
    np.random.seed(seed if seed < 2**32 else np.random.SeedSequence(seed).generate_state(8))
    try:
        yield
    finally:
        np.random.set_state(former)


def checked_action(action: ArrayLike, low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.float64]:
    """Check an action and clip it into its box.

    Args:
        action: what a policy asks for, shape ``(dim,)``.
        low: the box's lower bounds, shape ``(dim,)``. Values outside are clipped, silently: policies trained on
            demonstrations overshoot the box all the time.
        high: its upper bounds, shape ``(dim,)``.

    Returns:
        The action as float64, shape ``(dim,)``.

    Raises:
        ValueError: another shape, not numbers, or an entry that is NaN or infinite.
    """
    try:
        values = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an action must be an array of {low.size} numbers, not {action!r}") from error
    if values.shape != low.shape:
        raise ValueError(f"an action must have shape {low.shape}, not {values.shape}; step one environment at a time")
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values)).tolist()
        raise ValueError(
            f"the action is not finite at index {bad}: {values.tolist()}; look for NaN in the policy's output"
        )
    return np.clip(values, low, high)


def observe(env: Any, names: Collection[str]) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """What the present state looks like to a policy, and whether it is a success.

    The numbers are those of ``env._get_observations(force_update=True)`` and ``env._check_success()``, bit for bit.

    Args:
        env: a robosuite environment whose derived quantities are current.
        names: names of observables, or ``"object"`` for those of all objects together, robosuite's ``object-state``.

    Returns:
        Name → array, in the order of ``names``; and success.
    """
    wanted = set(names)
    with _plain_contacts(env.sim):
        objects = []
        for name, observable in env._observables.items():
            is_object = observable.modality == "object"
            # objects' poses in the frame of a hand are made from the hand's pose
            if name in wanted or is_object or name.endswith(("eef_pos", "eef_quat")):
                observable.update(timestep=env.model_timestep, obs_cache=env._obs_cache, force=True)
                if is_object and observable.is_active():
                    objects.append(np.atleast_1d(observable.obs))
        values = {name: np.concatenate(objects) if name == "object" else env._observables[name].obs for name in names}
        return {name: np.array(value, dtype=np.float64) for name, value in values.items()}, bool(env._check_success())


class _Contact(NamedTuple):
    geom1: int
    geom2: int


@contextmanager
def _plain_contacts(sim: Any) -> Iterator[None]:
    """Let robosuite read contacts from a list: it asks for them geom by geom, which MuJoCo's own answers slowly."""
    data = sim.data
    sim.data = copy(data)
    sim.data.__class__ = _with_plain_contacts(data.__class__)
    try:
        yield
    finally:
        sim.data = data


@cache
def _with_plain_contacts(data_class: Any) -> Any:
    contact = cached_property(lambda data: [_Contact(*pair) for pair in data._data.contact.geom.tolist()])
    # type's own constructor: that of robosuite's metaclass would put MuJoCo's attributes over the inherited ones
    return type.__new__(type(data_class), "DataWithPlainContacts", (data_class,), {"contact": contact})


OSC_POSE: Mapping[str, Any] = MappingProxyType(
    {
        "type": "OSC_POSE",
        "input_max": 1,
        "input_min": -1,
        "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
        "kp": 150,
        "damping_ratio": 1,
        "impedance_mode": "fixed",
        "kp_limits": [0, 300],
        "damping_ratio_limits": [0, 10],
        "position_limits": None,
        "orientation_limits": None,
        "uncouple_pos_ori": True,
        "control_delta": True,
        "interpolation": None,
        "ramp_ratio": 0.2,
    }
)
"""The controller under which Robomimic's demonstrations were recorded (``env_args`` of its datasets).

Operational-space control of the hand: three displacements of at most 5 cm and three rotations of at most 0.5 rad
(axis-angle, world frame) a control step, stiffness 150, critically damped.
"""

ACTIONS_PER_ARM = 7
"""Six for :data:`OSC_POSE`, one for the gripper (positive closes, negative opens)."""


@dataclass(frozen=True)
class RobosuiteTask:
    """A task of robosuite 1.4.1, as :class:`specpolicy_envs.robosuite_env.RobosuiteEnv` plays it.

    Attributes:
        name: robosuite's name of the environment.
        observations: name → dimension of what a policy sees, in order. ``object`` is robosuite's ``object-state``.
        robots: one name for each arm.
        controller: how actions become torques, the same for each arm.
        control_frequency: control steps a second of simulated time, Hz.
        camera: the camera that ``render`` looks through unless told otherwise.
        hard_reset: whether robosuite rebuilds its model at each reset. It costs a few tenths of a second, and is
            needed only where an object's shape is drawn with the model and should change between episodes.
        options: further arguments of robosuite's constructor.
    """

    name: str
    observations: Mapping[str, int]
    robots: tuple[str, ...] = ("Panda",)
    controller: Mapping[str, Any] = field(default_factory=lambda: OSC_POSE)
    control_frequency: int = 20
    camera: str = "agentview"
    hard_reset: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def action_dim(self) -> int:
        """Length of an action, all arms together."""
        return ACTIONS_PER_ARM * len(self.robots)

    def robosuite_arguments(self) -> dict[str, Any]:
        """Arguments of ``robosuite.make``: no images, no horizon of its own, sparse reward, object poses observed."""
        return {
            "env_name": self.name,
            "robots": list(self.robots),
            "controller_configs": [dict(self.controller) for _ in self.robots],
            "control_freq": self.control_frequency,
            "hard_reset": self.hard_reset,
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "use_camera_obs": False,
            "use_object_obs": True,
            "ignore_done": True,
            "reward_shaping": False,
            **self.options,
        }


Observation = dict[str, NDArray[Any]]

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
        images: camera images to observe, uint8, by name: ``{"agentview_image": (84, 84, 3)}``, or ``(3, 84, 84)`` for
            channels first. The name is the camera's with ``_image`` behind it, as in Robomimic's datasets, and rows
            begin at the top, as there. Rendered at every step.

    Raises:
        ImportError: the simulator is missing or has an unsuitable version; the message says what to install.
        ValueError: an argument is not one of those above.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's own type)
    task: ClassVar[RobosuiteTask]

    def __init__(
        self,
        render_mode: str | None = None,
        image_size: int = 256,
        camera: str | None = None,
        images: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
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
        self._images = {name: self._observed_camera(name, tuple(shape)) for name, shape in (images or {}).items()}
        for name, shape in (images or {}).items():
            self.observation_space[name] = spaces.Box(0, 255, tuple(shape), np.uint8)
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
        observation, success = self._observe()
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
        observation, success = self._observe()
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
        for camera in (self._camera, *(camera for camera, _ in self._images.values())):
            camera.close()

    def _observe(self) -> tuple[Observation, bool]:
        observation, success = observe(self._robosuite, self.task.observations)
        sim = self._robosuite.sim
        for name, (camera, channels_first) in self._images.items():
            image: NDArray[Any] = camera.image(sim.model._model, sim.data._data)
            observation[name] = np.ascontiguousarray(image.transpose(2, 0, 1)) if channels_first else image
        return observation, success

    def _observed_camera(self, name: str, shape: tuple[int, ...]) -> tuple[Camera, bool]:
        """The camera of an observation, and whether its channels come first."""
        channels_first = len(shape) == 3 and shape[0] == 3 and shape[-1] != 3
        if len(shape) != 3 or 3 not in (shape[0], shape[-1]) or min(shape) < 1:
            raise ValueError(f"images: {name!r} has shape {shape}; expected (height, width, 3) or (3, height, width)")
        if not name.endswith("_image"):
            raise ValueError(f"images: {name!r} names no camera; expected <camera>_image, such as agentview_image")
        height, width = shape[1:] if channels_first else shape[:2]
        return Camera(self._checked_camera(name.removesuffix("_image")), height, width), channels_first

    def _checked_camera(self, camera: str | None) -> str:
        names = list(self._robosuite.sim.model.camera_names)
        chosen = self.task.camera if camera is None else camera
        if chosen not in names:
            raise ValueError(f"{self.task.name} has no camera {chosen!r}; it has {', '.join(names)}")
        return chosen
