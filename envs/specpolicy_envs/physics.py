"""robosuite's control step and simulator state, without the work that an agent never sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .osc import controlling
from .simulator import load_mujoco


def advance(env: Any, action: NDArray[np.float64]) -> None:
    """One control step, bit for bit the states of ``env.step(action)`` in a fraction of its time.

    robosuite runs the forward dynamics three times a physics step: before the controller, inside it, and in
    ``mj_step``; only the last reads the torques. Splitting ``mj_step`` where the controller belongs runs them once. The
    controller is :func:`specpolicy_envs.osc.controlling`'s where that knows the arms. robosuite's observables and
    reward are left out, and MuJoCo's sensors until the end. Afterwards everything derived from positions and velocities
    is current, contacts and sensors included.

    Args:
        env: a robosuite environment.
        action: for all its arms, shape ``(action_dim,)``.
    """
    mujoco, sim = load_mujoco(), env.sim
    model, data = sim.model._model, sim.data._data
    physics_steps = int(env.control_timestep / env.model_timestep)
    control = controlling(env, physics_steps) or env._pre_action
    with _only_what_moves(sim):
        for physics_step in range(physics_steps):
            mujoco.mj_step1(model, data)
            control(action, physics_step == 0)
            mujoco.mj_step2(model, data)
    sim.forward()


@contextmanager
def _only_what_moves(sim: Any) -> Iterator[None]:
    """Without sensors, and without the forward dynamics that each controller asks for: ``mj_step1`` has done enough."""
    options = sim.model._model.opt
    flags = options.disableflags
    options.disableflags = flags | load_mujoco().mjtDisableBit.mjDSBL_SENSOR
    sim.forward = _nothing  # shadows the method
    try:
        yield
    finally:
        del sim.forward
        options.disableflags = flags


def _nothing() -> None:
    pass


def get_state(env: Any) -> NDArray[np.float64]:
    """Time (s), joint positions and joint velocities, shape ``(1 + nq + nv,)``."""
    state: NDArray[np.float64] = env.sim.get_state().flatten()
    return state


def set_state(env: Any, state: ArrayLike) -> None:
    """Bring a state of :func:`get_state` back into an environment that has just been reset.

    Controllers remember a pose: the goal that they hold, and the posture to which they pull what the hand leaves free.
    Left at the reset's, they would tear the arm away from where it was put. So they are made again as robosuite makes
    them at a reset, with the arm in place and all else at rest: an initial state then plays on, bit for bit, like the
    reset that it came from.

    Raises:
        ValueError: another shape, not numbers, or an entry that is NaN or infinite.
    """
    try:
        values = np.asarray(state, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a state must be an array of numbers, not {state!r}") from error
    model = env.sim.model
    expected = (1 + model.nq + model.nv,)
    if values.shape != expected:
        raise ValueError(
            f"a state of {type(env).__name__} has shape {expected}: time, {model.nq} positions, {model.nv} velocities; "
            f"this one has {values.shape} and may belong to another task"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"the state is not finite at index {np.flatnonzero(~np.isfinite(values)).tolist()}")
    positions = values[1 : 1 + model.nq]
    env.sim.reset()
    for robot in env.robots:
        env.sim.data.qpos[robot._ref_joint_pos_indexes] = positions[robot._ref_joint_pos_indexes]
        robot._load_controller()
    env.sim.set_state_from_flattened(values)
    env.sim.forward()
