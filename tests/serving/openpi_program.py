"""Runs in an environment of its own: openpi's client, as published, against the server at argv[1].

Prints one JSON object with what it saw; arrays as lists.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker  # type: ignore[import-not-found]
from openpi_client.websocket_client_policy import WebsocketClientPolicy  # type: ignore[import-not-found]

host, port, key = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def failure(call: Callable[..., Any], *arguments: Any, **named: Any) -> str | None:
    try:
        call(*arguments, **named)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def observation(value: float) -> dict[str, Any]:
    return {"pose": np.full(3, value), "grip": np.array([value], np.float32)}


def plain(reply: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in reply.items()}


seen: dict[str, Any] = {"numpy": np.__version__}
seen["without key"] = failure(WebsocketClientPolicy, host, port)
seen["wrong key"] = failure(WebsocketClientPolicy, host, port, api_key="x" * 20)
policy = WebsocketClientPolicy(host, port, api_key=key)
seen["metadata"] = policy.get_server_metadata()
seen["reset"] = plain(policy.infer({"__request__": "reset", "seed": 7}))
first = policy.infer(observation(1.0))
seen["dtype"], seen["first"] = str(first["actions"].dtype), plain(first)
seen["mistake"] = failure(policy.infer, {"pose": np.zeros(2), "grip": np.zeros(1)})
seen["unsendable"] = failure(policy.infer, {"pose": np.array([None])})
seen["breaks"] = failure(policy.infer, observation(-13.0))
seen["with more"] = plain(policy.infer(dict(observation(2.0), prompt="lift", state=np.zeros((2, 2), np.uint8))))
broker = ActionChunkBroker(policy, action_horizon=3)
seen["broker"] = [plain(broker.infer(observation(5.0)))["actions"] for _ in range(4)]
policy.reset()
print(json.dumps(seen))
