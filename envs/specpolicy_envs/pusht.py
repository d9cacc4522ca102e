"""PushT: push a T over its mark with a round finger (Diffusion Policy's task, played by ``gym-pusht``)."""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from specpolicy_envs.robosuite_env import checked_action

Observation = dict[str, NDArray[Any]]

INSTALL = 'pip install "specpolicy[pusht]"'
SIZE = 512.0
"""Side of the square in which everything lies, pixels; x points right and y down."""

SOLVED = 0.95
"""Share of the mark that the T must cover."""

KEYPOINTS = np.array(
    [
        [9.26979, 90.04097],
        [-60.98347, -1.18673],
        [60.91276, -1.39336],
        [-0.27050, 25.54363],
        [-14.06493, 122.81585],
        [39.00274, 32.85740],
        [-39.96641, 32.72966],
        [-16.82434, 62.86318],
        [23.54146, -1.70029],
    ]
)
"""Nine points spread over the T, in its own frame, pixels: those of the human demonstrations, fitted to them.

They agree to 1e-5 pixels while the T lies still. While the finger leans on it the recorded points run ahead of the
recorded pose: by less than 0.04 pixels in 99 of 100 steps, by 2.1 at worst.
"""

_NAMES = ("agent x", "agent y", "block x", "block y", "block angle")


class PushTEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """The T lies anywhere and has to cover a mark of its shape that never moves.

    Observation: ``Dict`` of float64 arrays, pixels. ``agent_pos`` (2): the finger's centre. ``keypoints`` (18): x and y
    of :data:`KEYPOINTS` where the T lies, point by point.

    Action: ``Box(0, 512, (2,), float32)``, where the finger shall go; a spring and a damper take it there. Ten a
    second. Values outside are clipped; a wrong shape or a NaN is an error.

    Reward: an episode counts by its best moment, so a step earns by how much it betters the best coverage of the mark
    after any earlier step. The sum over an episode is thus the largest of ``min(coverage / 0.95, 1)``, the score of
    Diffusion Policy.

    ``terminated`` at a coverage of 0.95. ``info["success"]`` says whether it is reached and ``info["coverage"]`` how
    much of the mark is covered, in [0, 1]; after ``reset`` too. The longest episode is the registered
    ``max_episode_steps``, which ``gym.make`` enforces.

    Args:
        render_mode: None or ``"rgb_array"``.
        image_size: height and width of a rendered image, pixels.

    Raises:
        ImportError: ``gym-pusht`` is missing; the message says what to install.
        ValueError: an argument is not one of those above.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own type)

    def __init__(self, render_mode: str | None = None, image_size: int = 256) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', not {render_mode!r}")
        if image_size < 1:
            raise ValueError(f"image_size must be a positive number of pixels, not {image_size}")
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            [
                ("agent_pos", spaces.Box(-np.inf, np.inf, (2,), np.float64)),
                ("keypoints", spaces.Box(-np.inf, np.inf, (KEYPOINTS.size,), np.float64)),
            ]
        )
        self._actions = spaces.Box(0.0, SIZE, (2,), np.float32)
        self.action_space = self._actions
        self._image_size = image_size
        self._pusht: Any = load_gym_pusht().PushTEnv(render_mode="rgb_array")
        self._best = 0.0
        self._is_reset = False

    @property
    def pusht(self) -> Any:
        """The environment of ``gym-pusht`` underneath, for what this interface leaves out: bodies, space, contacts."""
        return self._pusht

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: names the initial state, bit for bit, whatever was played before and in whichever process; the same
                one as in Diffusion Policy's evaluations, for which seeds 0 to 205 are those of the 206 human
                demonstrations. None goes on with the stream of the last seed.
            options: ``{"state": array}`` begins at a recorded state instead; see :meth:`state`.

        Raises:
            ValueError: an unknown option, or a state of the wrong shape or with NaN.
        """
        unknown = set(options or ()) - {"state"}
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}; the only one is 'state'")
        super().reset(seed=seed)
        drawn = initial_pose(int(self.np_random.integers(2**32)) if seed is None else seed)
        self._pusht.reset(options={"reset_to_state": drawn})
        if options and "state" in options:
            self._restore(options["state"])
        self._best = 0.0
        self._is_reset = True
        return self._observe(), _info(self._pusht._get_coverage())

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """A tenth of a second; see the class for what comes back.

        Raises:
            ValueError: an action of the wrong shape, or with NaN or infinity.
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if not self._is_reset:
            raise ResetNeeded("call reset() before step()")
        *_, played = self._pusht.step(checked_action(action, self._actions.low, self._actions.high))
        info = _info(played["coverage"])
        score = min(info["coverage"] / SOLVED, 1.0)
        reward, self._best = max(score - self._best, 0.0), max(score, self._best)
        return self._observe(), reward, info["success"], False, info

    def state(self) -> NDArray[np.float64]:
        """Position of the finger, position and angle of the T, then their velocities in this order, shape ``(10,)``.

        Pixels, radians, seconds. ``reset(options={"state": ...})`` brings them back, up to rounding; the first five
        alone, which is what the human demonstrations record, begin at rest. Not in it: the forces with which finger and
        T were leaning on each other, from which the contact solver would have gone on.
        """
        agent, block = self._pusht.agent, self._pusht.block
        pose = [*agent.position, *block.position, block.angle]
        return np.array([*pose, *agent.velocity, *block.velocity, block.angular_velocity], dtype=np.float64)

    def render(self) -> NDArray[np.uint8] | None:
        """The plane from above, shape ``(image_size, image_size, 3)``; None without a render mode."""
        if self.render_mode is None:
            gym.logger.warn("render() needs gym.make(..., render_mode='rgb_array')")
            return None
        pygame = importlib.import_module("pygame")
        picture = pygame.transform.smoothscale(self._pusht._draw(), (self._image_size, self._image_size))
        return np.ascontiguousarray(pygame.surfarray.array3d(picture).swapaxes(0, 1))

    def picture(self, size: int) -> NDArray[np.uint8]:
        """The plane from above as the human demonstrations recorded it, shape ``(size, size, 3)``.

        Interpolated between the nearest four pixels of the drawing, without averaging: theirs to the last byte while
        nothing moves.
        """
        pygame, cv2 = importlib.import_module("pygame"), importlib.import_module("cv2")
        drawn = pygame.surfarray.array3d(self._pusht._draw()).swapaxes(0, 1)
        scaled: NDArray[np.uint8] = cv2.resize(np.ascontiguousarray(drawn), (size, size))
        return scaled

    def _restore(self, state: ArrayLike) -> None:
        values = checked_state(state)
        agent, block = self._pusht.agent, self._pusht.block
        agent.position = tuple(values[0:2])
        block.angle = values[4]  # before the position: turning moves a body whose centre of mass is not its origin
        block.position = tuple(values[2:4])
        agent.velocity, block.velocity, block.angular_velocity = tuple(values[5:7]), tuple(values[7:9]), values[9]
        for body in (agent, block):  # drawings show where shapes were last updated
            self._pusht.space.reindex_shapes_for_body(body)

    def _observe(self) -> Observation:
        block = self._pusht.block
        return {
            "agent_pos": np.array(self._pusht.agent.position, dtype=np.float64),
            "keypoints": keypoints(np.array([*block.position, block.angle])),
        }


class PushTImageEnv(PushTEnv):
    """PushT seen by a camera from above, as in the published demonstrations.

    Observation: ``Dict`` of ``image``, uint8, shape ``(camera_size, camera_size, 3)``, and ``agent_pos`` (2), float64,
    the finger's centre in pixels of the plane. Everything else as :class:`PushTEnv`.

    Args:
        render_mode, image_size: of :meth:`render`, as for :class:`PushTEnv`.
        camera_size: height and width of an observed image, pixels; the demonstrations have 96.

    Raises:
        ImportError, ValueError: as for :class:`PushTEnv`.
    """

    def __init__(self, render_mode: str | None = None, image_size: int = 256, camera_size: int = 96) -> None:
        if camera_size < 1:
            raise ValueError(f"camera_size must be a positive number of pixels, not {camera_size}")
        super().__init__(render_mode, image_size)
        self._camera_size = camera_size
        self.observation_space = spaces.Dict(
            [
                ("image", spaces.Box(0, 255, (camera_size, camera_size, 3), np.uint8)),
                ("agent_pos", spaces.Box(-np.inf, np.inf, (2,), np.float64)),
            ]
        )

    def _observe(self) -> Observation:
        position = np.array(self._pusht.agent.position, dtype=np.float64)
        return {"image": self.picture(self._camera_size), "agent_pos": position}


def _info(coverage: float) -> dict[str, Any]:
    return {"success": bool(coverage >= SOLVED), "coverage": float(coverage)}


def keypoints(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where :data:`KEYPOINTS` are if the T is at ``pose``: x, y (pixels), angle (radians). Shape ``(18,)``, x first."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    placed: NDArray[np.float64] = KEYPOINTS @ np.array([[cos, sin], [-sin, cos]]) + pose[:2]
    return placed.ravel()


def initial_pose(seed: int) -> NDArray[np.float64]:
    """What Diffusion Policy draws for ``seed``: finger x, y and T x, y (pixels), angle (radians), shape ``(5,)``.

    The T is then turned about its centre of mass, not its origin, and so comes to lie beside the x and y drawn here.

    Args:
        seed: any integer ≥ 0; from 2³² on it is hashed, since that generator knows no larger ones.
    """
    rng = np.random.RandomState(seed if seed < 2**32 else np.random.SeedSequence(seed).generate_state(8))
    places = [rng.randint(50, 450), rng.randint(50, 450), rng.randint(100, 400), rng.randint(100, 400)]
    return np.array([*places, rng.randn() * 2 * np.pi - np.pi])


def checked_state(state: ArrayLike) -> NDArray[np.float64]:
    """A recorded state with velocities, zero where it has none, shape ``(10,)``.

    Raises:
        ValueError: neither 5 nor 10 numbers, or an entry that is NaN or infinite.
    """
    try:
        values = np.asarray(state, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a state must be an array of numbers, not {state!r}") from error
    if values.shape not in ((5,), (10,)):
        raise ValueError(
            f"a state of PushT has shape (5,): {', '.join(_NAMES)}; or (10,), with their velocities; "
            f"this one has {values.shape} and may belong to another task"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"the state is not finite at index {np.flatnonzero(~np.isfinite(values)).tolist()}")
    return np.concatenate([values, np.zeros(10 - values.size)])


@cache
def load_gym_pusht() -> Any:
    """The module of ``gym-pusht``'s environment, imported once and without pygame's greeting.

    Raises:
        ImportError: it is not installed, or something that it needs cannot be loaded; the message says what to do.
    """
    former = os.environ.get("PYGAME_HIDE_SUPPORT_PROMPT")
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    try:
        return importlib.import_module("gym_pusht.envs.pusht")
    except ImportError as error:
        raise ImportError(f"PushT needs gym-pusht, which could not be imported ({error}): {INSTALL}") from error
    finally:
        if former is None:
            del os.environ["PYGAME_HIDE_SUPPORT_PROMPT"]
        else:
            os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = former
