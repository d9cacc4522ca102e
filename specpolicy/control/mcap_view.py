"""Episodes as MCAP files, for Foxglove and others: what was observed, sent, computed and objected to, as JSON."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.control.trace import EpisodeTrace
from specpolicy.utils.extras import require

_NUMBER, _TEXT = {"type": "number"}, {"type": ["string", "null"]}
_TIME = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
SCHEMAS: dict[str, dict[str, Any]] = {
    "specpolicy.Action": {"values": {"type": "array", "items": _NUMBER}},
    "specpolicy.Observation": {},
    "specpolicy.Tick": {
        "tick": {"type": "integer"}, "late_ms": _NUMBER, "age_ms": {"type": ["number", "null"]},
        "queue": {"type": "integer"}, "source": _TEXT, "computing": _TEXT, "fault": _TEXT, "response": _TEXT,
        "reward": _NUMBER, "success": {"type": "boolean"},
    },
    "specpolicy.Inference": {
        "number": {"type": "integer"}, "kind": _TEXT, "tick": {"type": "integer"}, "ms": _NUMBER,
        "network_evaluations": {"type": ["integer", "null"]}, "rows": {"type": ["integer", "null"]},
        "acceptance": {"type": ["number", "null"]}, "error": _TEXT,
    },
    "specpolicy.Chunk": {
        "inference": {"type": "integer"}, "tick": {"type": "integer"}, "times_s": {"type": "array", "items": _NUMBER},
        "actions": {"type": "array", "items": {"type": "array", "items": _NUMBER}},
    },
    "specpolicy.Outcome": {
        "seed": {"type": "integer"}, "repeat": {"type": "integer"}, "success": {"type": "boolean"},
        "stopped": _TEXT, "reason": _TEXT, "faults": {"type": "object"},
    },
    "foxglove.CompressedImage": {
        "timestamp": _TIME, "frame_id": {"type": "string"}, "format": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
    },
}  # fmt: skip
"""Properties of each kind of message."""

_TOPICS = {
    "/action": "specpolicy.Action", "/tick": "specpolicy.Tick", "/inference": "specpolicy.Inference",
    "/chunk": "specpolicy.Chunk", "/outcome": "specpolicy.Outcome", "/observation": "specpolicy.Observation",
}  # fmt: skip


class McapView:
    """Writes a file for each episode, ``<name>-seed<seed>-<repeat>.mcap`` (extra: mcap).

    Its times are those of the loop, from the wall-clock time at which the episode began. A file whose process was
    killed lacks its index: ``mcap recover`` rebuilds it.

    Args:
        path: names the files.

    Raises:
        ImportError: mcap is not installed; the message names the extra.
    """

    def __init__(self, path: str | Path) -> None:
        self._writer_of: Any = require("mcap.writer", "mcap").Writer
        self._path = Path(path)
        self._file: Any = None
        self._writer: Any = None
        self._shown = 0

    def begin(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`specpolicy.control.viewers.View`."""
        self._close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        path = self._path.with_name(f"{self._path.stem}-seed{trace.seed}-{trace.repeat}.mcap")
        self._file = path.open("wb")
        self._writer = self._writer_of(self._file)
        self._writer.start(profile="", library="specpolicy")
        self._schemas = {
            name: self._writer.register_schema(
                name, "jsonschema", json.dumps({"type": "object", "properties": properties}).encode()
            )
            for name, properties in SCHEMAS.items()
        }
        self._channels: dict[str, int] = {}
        self._shown, self._begun_ns = 0, time.time_ns()
        self._show_observation(trace, env, 0.0)

    def tick(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`specpolicy.control.viewers.View`."""
        row = trace.ticks[-1]
        self._add("/action", row.sent_s, {"values": list(row.action)})
        self._add(
            "/tick",
            row.sent_s,
            {
                "tick": row.tick,
                "late_ms": 1e3 * (row.sent_s - row.due_s),
                "age_ms": None if row.age_s is None else 1e3 * row.age_s,
                **{name: getattr(row, name) for name in ("queue", "source", "computing", "fault", "response")},
                "reward": row.reward,
                "success": row.success,
            },
        )
        self._show_inferences(trace, row.sent_s)
        self._show_observation(trace, env, row.sent_s)

    def end(self, trace: EpisodeTrace) -> None:
        """See :class:`specpolicy.control.viewers.View`."""
        last = trace.ticks[-1].sent_s if trace.ticks else 0.0
        names = ("seed", "repeat", "success", "stopped", "reason")
        self._add("/outcome", last, {name: getattr(trace, name) for name in names} | {"faults": dict(trace.faults)})
        self._close()

    def _show_inferences(self, trace: EpisodeTrace, now_s: float) -> None:
        for each in trace.inferences:
            if each.number < self._shown:
                continue
            if each.ended_s is None or each.ended_s > now_s:
                return  # under way
            self._shown = each.number + 1
            self._add(
                "/inference",
                each.ended_s,
                {
                    "number": each.number,
                    "kind": str(each.kind),
                    "tick": each.tick,
                    "ms": 1e3 * (each.ended_s - each.begun_s),
                    "network_evaluations": each.passes,
                    "rows": each.evaluations,
                    "acceptance": each.acceptance,
                    "error": each.error,
                },
            )
            if each.actions is not None:
                ticks = each.tick + np.arange(len(each.actions))
                self._add(
                    "/chunk",
                    each.ended_s,
                    {
                        "inference": each.number,
                        "tick": each.tick,
                        "times_s": (ticks / trace.rate_hz).tolist(),
                        "actions": np.asarray(each.actions).tolist(),
                    },
                )

    def _show_observation(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any], at_s: float) -> None:
        vectors = {}
        for name, value in trace.observation.items():
            if value.ndim == 3 and value.dtype == np.uint8:
                self._show_image(f"/observation/{name}", value, at_s)
            else:
                vectors[name] = value.tolist()
        self._add("/observation", at_s, vectors)
        if env.render_mode == "rgb_array":
            rendered: Any = env.render()
            self._show_image("/camera", np.asarray(rendered, dtype=np.uint8), at_s)

    def _show_image(self, topic: str, image: NDArray[Any], at_s: float) -> None:
        image = np.moveaxis(image, 0, -1) if image.shape[-1] not in (1, 3) else image
        written = io.BytesIO()
        pillow: Any = require("PIL.Image", "mcap")
        pillow.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(written, "jpeg", quality=85)
        stamp = self._begun_ns + round(1e9 * at_s)
        message = {
            "timestamp": {"sec": stamp // 10**9, "nsec": stamp % 10**9},
            "frame_id": topic.rpartition("/")[2],
            "format": "jpeg",
            "data": base64.b64encode(written.getvalue()).decode(),
        }
        self._add(topic, at_s, message)

    def _add(self, topic: str, at_s: float, message: dict[str, Any]) -> None:
        if topic not in self._channels:
            kind = _TOPICS.get(topic, "foxglove.CompressedImage")
            self._channels[topic] = self._writer.register_channel(topic, "json", self._schemas[kind])
        at = self._begun_ns + round(1e9 * at_s)
        self._writer.add_message(self._channels[topic], log_time=at, publish_time=at, data=json.dumps(message).encode())

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.finish()
            self._file.close()
            self._writer = self._file = None
