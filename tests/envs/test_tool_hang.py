from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation
from specpolicy_envs.robosuite_tasks import ToolHangEnv


def test_the_object_observation_is_laid_out_as_documented(tool_hang: ToolHangEnv) -> None:
    tool_hang.reset(seed=4)
    for _ in range(3):
        observation, *_ = tool_hang.step([0.5, -0.5, -1, 0, 0.3, 0, -1])
    data, model = tool_hang.robosuite.sim.data, tool_hang.robosuite.sim.model
    hand = data.site_xpos[tool_hang.robosuite.robots[0].eef_site_id]
    np.testing.assert_array_equal(observation["robot0_eef_pos"], hand)
    values = observation["object"]
    base, corner, tool = (
        model.geom_name2id("stand_base"),
        model.site_name2id("frame_intersection_site"),
        model.body_name2id("tool_root"),
    )
    places = (data.geom_xpos[base], data.site_xpos[corner], data.body_xpos[tool])
    turns = (data.geom_xmat[base], data.site_xmat[corner], data.body_xmat[tool])
    for part, place, turn in zip(np.split(values[:42], 3), places, turns, strict=True):
        np.testing.assert_array_equal(part[:3], place)
        np.testing.assert_allclose(Rotation.from_quat(part[3:7]).as_matrix(), turn.reshape(3, 3), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(part[7:10]), np.linalg.norm(place - hand), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(part[10:14]), 1, atol=1e-6)
    np.testing.assert_array_equal(values[42:], [0, 0])


def test_initial_states_differ_in_the_frame_and_the_tool_but_not_in_the_stand(tool_hang: ToolHangEnv) -> None:
    first, second = (tool_hang.reset(seed=seed)[0]["object"] for seed in (0, 1))
    np.testing.assert_allclose(first[:3], second[:3], atol=1e-3)
    for begin in (14, 28):
        assert 1e-3 < np.linalg.norm(first[begin : begin + 2] - second[begin : begin + 2]) < 0.1
