"""MCAP files, read back with the official reader."""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_fakes import SPEC, TickEnv, TickPolicy

from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.executors import Asynchronous
from specpolicy.control.guards import Guards
from specpolicy.control.latency import Constant
from specpolicy.control.loop import ControlLoop
from specpolicy.control.mcap_view import SCHEMAS, McapView


class Seeing(TickEnv):
    """Has a camera among its observations."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        return {**observation, "wrist": np.full((3, 8, 8), 7, np.uint8)}, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        return {**observation, "wrist": np.full((3, 8, 8), 7, np.uint8)}, *rest  # type: ignore[return-value]


def test_an_episode_is_read_back_with_the_official_reader(tmp_path: Path) -> None:
    reader = pytest.importorskip("mcap.reader", reason="needs MCAP: pip install 'specpolicy[mcap]'")
    images = pytest.importorskip("PIL.Image", reason="needs pillow: pip install 'specpolicy[mcap]'")
    env = Seeing(12, render_mode="rgb_array")
    loop = ControlLoop(
        env, TickPolicy(), Asynchronous(4, 2), SimulatedLatencyClock(20.0, Constant(0.05)), Guards(), SPEC,
        views=[McapView(tmp_path / "logs" / "loop.mcap")],
    )  # fmt: skip
    trace = loop.run(3)
    read: dict[str, list[Any]] = defaultdict(list)
    with (tmp_path / "logs" / "loop-seed3-0.mcap").open("rb") as file:
        for schema, channel, message in reader.make_reader(file).iter_messages():
            assert schema.encoding == "jsonschema" and channel.message_encoding == "json"
            values = json.loads(message.data)
            assert channel.topic == "/observation" or set(values) == set(SCHEMAS[schema.name])
            read[channel.topic].append((message.log_time, values))
    assert [each["values"] for _, each in read["/action"]] == [list(row.action) for row in trace.ticks]
    assert [each["fault"] for _, each in read["/tick"]] == [row.fault for row in trace.ticks]
    assert [each["tick"] for _, each in read["/observation"]] == [[float(tick)] for tick in range(13)]
    ended = [each for each in trace.inferences if each.ended_s is not None and each.ended_s <= trace.ticks[-1].sent_s]
    assert [each["number"] for _, each in read["/inference"]] == [each.number for each in ended] and ended
    chunks = {each["inference"]: each for _, each in read["/chunk"]}
    for each in ended:
        assert each.actions is not None
        assert chunks[each.number]["actions"] == each.actions.tolist() and chunks[each.number]["tick"] == each.tick
        assert chunks[each.number]["times_s"][1] == pytest.approx((each.tick + 1) / 20)
    assert len(read["/camera"]) == len(read["/observation/wrist"]) == 13
    picture = images.open(io.BytesIO(base64.b64decode(read["/observation/wrist"][0][1]["data"])))
    assert np.asarray(picture).shape == (8, 8, 3) and abs(int(np.asarray(picture).mean()) - 7) <= 2
    outcome = read["/outcome"][0][1]
    assert outcome["seed"] == 3 and outcome["success"] is trace.success and outcome["faults"] == dict(trace.faults)
    times = [at for at, _ in read["/action"]]
    assert np.allclose(np.diff(times) / 1e9, 0.05, atol=1e-6)
