"""The codec: what goes in comes out, and nothing that comes in can do harm."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hostile_frames import hostile_frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from serving_fakes import SPEC, observation

from specpolicy.serving.protocol import BadRequest, FrameError, Request, RequestRefused, pack, parse_request, unpack
from specpolicy.serving.session import StepCollector

DTYPES = st.sampled_from(["<f4", "<f8", ">f4", "<f2", "|u1", "<i8", ">i2", "|b1"])


@given(DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0))))
@settings(max_examples=60, deadline=None)
def test_arrays_travel_unchanged(array: np.ndarray[Any, Any]) -> None:
    back = unpack(pack({"x": array, "y": [array, {"z": None}]}))["x"]
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_numbers_and_text_travel_unchanged() -> None:
    message = {"a": np.float32(1.5), "b": np.int64(-3), "c": True, "d": "é", "e": b"raw", "f": [1, 2.5, None]}
    back = unpack(pack(message))
    assert back == message and back["a"].dtype == np.float32 and back["b"].dtype == np.int64


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([object()]), "dtype object"),
        (np.array([1j]), "complex"),
        (np.zeros(2, "f4,i4"), "dtype"),
        (np.array(["text"]), "dtype <U4"),
        (np.zeros((1,) * 9), "9 dimensions"),
        ({1, 2}, "a set cannot be sent"),
        (2**70, "cannot be sent"),
        ("\ud800", "cannot be sent"),
    ],
)
def test_what_may_not_travel_is_refused_before_it_is_sent(value: object, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        pack({"x": value})


def array_map(**changes: object) -> dict[bytes, object]:
    entry = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return entry | {name.encode(): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (array_map(dtype="|O"), "never unpickled"),
        (array_map(dtype="O"), "never unpickled"),
        (array_map(dtype="(1000000000,)f4"), "dtype"),
        (array_map(dtype=[["x", "<f4"]]), "dtype"),
        (array_map(dtype="<M8[s]"), "dtype"),
        (array_map(shape=[3]), "does not have 8 bytes"),
        (array_map(shape=[2**31 - 1] * 8), "does not have 8 bytes"),
        (array_map(shape=[-2]), "shape"),
        (array_map(shape=[True, 2]), "shape"),
        (array_map(shape=[0] * 9), "shape"),
        (array_map(shape=2), "shape"),
        (array_map(data="text"), "must be bytes"),
        ({b"__npgeneric__": True, b"dtype": "<i4", b"data": [1]}, "must be a number"),
        ({b"__npgeneric__": True, b"dtype": "|i1", b"data": 1000}, "out of bounds"),
        (msgpack.ExtType(5, b"x"), "extension type 5"),
        ([0] * 5000, "exceeds max_array_len"),
    ],
)
def test_hostile_values_are_refused(entry: object, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        unpack(msgpack.packb({"x": entry}))


def test_claimed_lengths_take_no_memory() -> None:
    nested = b"\xdd\x7f\xff\xff\xff" * 900  # lists in lists, each of two thousand million elements
    with pytest.raises(FrameError, match="max_array_len"):
        unpack(nested + bytes(2**20))
    with pytest.raises(FrameError):
        unpack(b"\x91" * 100_000)


def test_ten_thousand_malformed_frames_do_nothing_but_be_refused() -> None:
    """Whatever arrives is a request that can be judged, or is refused in words: no other exception, no object."""
    seen = {"frames": 0, "refused": 0}
    history = StepCollector(SPEC)

    @given(hostile_frames(40))
    @settings(max_examples=260, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def judge(frames: list[bytes]) -> None:
        for frame in frames:
            seen["frames"] += 1
            try:
                request = parse_request(frame)
                assert isinstance(request, Request)
                if request.kind != "reset":
                    history.add(request.observation)
                    assert all(part.dtype == np.float32 for part in history.stacked().values())
            except (BadRequest, RequestRefused) as error:
                seen["refused"] += 1
                assert 0 < len(str(error)) < 1500

    judge()
    assert seen["frames"] >= 10_000, seen
    assert 0.5 < seen["refused"] / seen["frames"] < 1, "most are wrong, and some are right: both paths were taken"
    history.add(observation())
