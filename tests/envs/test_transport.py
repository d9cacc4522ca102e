from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from specpolicy_envs.robosuite_tasks import TransportEnv

NOTHING = np.zeros(14)


def head(env: TransportEnv) -> tuple[float, ...]:
    """Half the size of the hammer's head, m, as the simulator has it."""
    model = env.robosuite.sim.model
    return tuple(model.geom_size[model.geom_name2id("payload_head")])


def with_objects(env: TransportEnv, **places: str) -> NDArray[np.float64]:
    """The initial state of seed 0, but with the named objects on the bottoms of the named bins."""
    env.reset(seed=0)
    sim, state = env.robosuite.sim, env.state()
    for thing, bin_ in places.items():
        begin, _ = sim.model.get_joint_qpos_addr(f"{thing}_joint0")
        bottom = sim.data.geom_xpos[sim.model.geom_name2id(f"transport_{bin_}_base")]
        state[1 + begin : 1 + begin + 3] = [*bottom[:2], bottom[2] + 0.021]
    return state


@pytest.mark.parametrize(
    ("places", "flags"),
    [
        ({"payload": "target_bin", "trash": "trash_bin"}, [1, 1]),
        ({"payload": "target_bin", "trash": "start_bin"}, [1, 0]),
        ({"trash": "trash_bin"}, [0, 1]),
    ],
)
def test_success_is_the_hammer_in_one_bin_and_the_trash_in_the_other(
    transport: TransportEnv, places: dict[str, str], flags: list[int]
) -> None:
    transport.reset(seed=0, options={"state": with_objects(transport, **places)})
    for _ in range(4):  # they fall the last millimetres
        observation, reward, terminated, _, info = transport.step(NOTHING)
    np.testing.assert_array_equal(observation["object"][-2:], flags)
    assert (reward, terminated, info) == (float(all(flags)), all(flags), {"success": all(flags)})


def test_the_object_observation_is_laid_out_as_documented(transport: TransportEnv) -> None:
    observation, _ = transport.reset(seed=5)
    sim = transport.robosuite.sim
    hammer = sim.data.body_xpos[sim.model.body_name2id("payload_root")]
    trash = sim.data.body_xpos[sim.model.body_name2id("trash_main")]
    knob, target, bin_ = (
        sim.data.geom_xpos[sim.model.geom_name2id(f"transport_{name}")]
        for name in ("start_bin_lid_handle", "target_bin_base", "trash_bin_base")
    )
    left, right = observation["robot0_eef_pos"], observation["robot1_eef_pos"]
    values = observation["object"]
    for begin, position in ((0, hammer), (7, trash), (14, knob)):
        np.testing.assert_array_equal(values[begin : begin + 3], position)
        assert np.linalg.norm(values[begin + 3 : begin + 7]) == pytest.approx(1)
    expected = [target, bin_, hammer - left, knob - left, hammer - right, trash - right]
    np.testing.assert_allclose(values[21:39], np.concatenate(expected), atol=1e-12)


def test_the_seed_names_the_hammer_too(transport: TransportEnv) -> None:
    heads = []
    for seed in (3, 4, 3):
        transport.reset(seed=seed)
        heads.append(head(transport))
    assert heads[0] == heads[2] != heads[1]
    assert 0.015 < heads[1][2] < 0.018


def test_a_state_is_played_with_the_hammer_of_the_seed_beside_it(transport: TransportEnv) -> None:
    transport.reset(seed=3)
    state, of_three = transport.state(), head(transport)
    for seed, same in ((4, False), (3, True)):
        transport.reset(seed=seed, options={"state": state})
        np.testing.assert_array_equal(transport.state(), state)
        assert (head(transport) == of_three) is same


@pytest.mark.slow
def test_another_process_has_the_same_hammer_and_state(transport: TransportEnv) -> None:
    code = (
        "from specpolicy_envs.robosuite_tasks import TransportEnv\n"
        "env = TransportEnv()\n"
        "env.reset(seed=3)\n"
        "sizes = env.robosuite.sim.model.geom_size\n"
        "print((env.state().tobytes() + sizes.tobytes()).hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=True)
    transport.reset(seed=3)
    sizes = transport.robosuite.sim.model.geom_size
    assert done.stdout.strip() == (transport.state().tobytes() + sizes.tobytes()).hex()
