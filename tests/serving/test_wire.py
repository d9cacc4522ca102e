"""The codec: what goes in comes out, and nothing that comes in can do harm."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import numpy as np
import pytest
from hostile_frames import hostile_frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from serving_fakes import SPEC, observation

from specpolicy.policies.observations import ObservationSpec
from specpolicy.serving.protocol import (
    BadRequest,
    DecodeLimits,
    FrameError,
    Request,
    RequestRefused,
    Unreadable,
    _check_size,
    pack,
    parse_request,
    unpack,
)
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
        (np.zeros((1,) * 9), "9 dimensions"),
        ({1, 2}, "a set cannot be sent"),
        (2**70, "cannot be sent"),
        ("\ud800", "cannot be sent"),
    ],
)
def test_what_may_not_travel_is_refused_before_it_is_sent(value: object, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        pack({"x": value})


@pytest.mark.parametrize("text", [np.array(["lift", "the can"]), np.array([b"raw"])])
def test_arrays_of_text_travel_as_openpi_sends_them(text: Any) -> None:
    back = unpack(pack({"x": text}))["x"]
    assert back.dtype == text.dtype and back.tolist() == text.tolist()


def array_map(**changes: object) -> dict[bytes, object]:
    entry = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return entry | {name.encode(): value for name, value in changes.items()}


UNREADABLE = [
    (array_map(dtype="|O"), "never unpickled"),
    (array_map(dtype="O"), "never unpickled"),
    (array_map(dtype="(1000000000,)f4"), "dtype"),
    (array_map(dtype=[["x", "<f4"]]), "dtype"),
    (array_map(dtype="<M8[s]"), "dtype"),
    (array_map(dtype="<U4"), "does not have 8 bytes"),
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
]


@pytest.mark.parametrize(("entry", "says"), UNREADABLE)
def test_hostile_values_are_never_made_into_anything(entry: object, says: str) -> None:
    found = unpack(msgpack.packb({"x": entry}))["x"]
    assert isinstance(found, Unreadable) and says in found.reason


@pytest.mark.parametrize(
    "entry",
    [*(entry for entry, _ in UNREADABLE), "text", {"deep": {1: [None]}}, [["a"]], pack({}), *([{}], None, True)],
)
def test_what_the_policy_does_not_read_may_be_anything(entry: object) -> None:
    """The request is carried out, and the key reported; under a key that is needed, it is refused by its name."""
    good = {name: part.tolist() for name, part in observation(1).items()}
    history = StepCollector(SPEC)
    request = parse_request(msgpack.packb(good | {"camera": entry, 7: entry}))
    assert history.add(request.observation) == ("7", "camera")
    request = parse_request(msgpack.packb(good | {"pose": entry}))
    with pytest.raises(RequestRefused, match=r"^observation\['pose'\]"):
        history.add(request.observation)


def test_text_where_numbers_are_needed_is_named() -> None:
    request = parse_request(pack(observation(1) | {"pose": np.array(["a", "b", "c"])}))
    with pytest.raises(RequestRefused, match=r"^observation\['pose'\] holds text; expected numbers"):
        StepCollector(SPEC).add(request.observation)


def test_nesting_is_refused_in_words() -> None:
    for depth in (20, 1020, 100_000):
        with pytest.raises(FrameError, match="nested more than 16 deep"):
            unpack(b"\x91" * depth + b"\xc0")
        with pytest.raises(BadRequest, match="nested more than 16 deep"):
            parse_request(b"\x81\xa1x" * depth + b"\xc0")
    deep: Any = None
    for _ in range(12):
        deep = [deep]
    assert unpack(msgpack.packb(deep)) == deep


def test_a_message_of_many_values_is_refused_before_it_is_decoded() -> None:
    """A megabyte of empty maps takes as long as reading the headers of what an observation can need."""
    limits = DecodeLimits.of(SPEC)
    assert 1024 < limits.objects < 1300
    frames = [
        msgpack.packb([[{}] * 4000] * 250),
        msgpack.packb([{}] * 1_000_000),
        msgpack.packb({str(key): 0 for key in range(100_000)}),
        b"\xdd\x7f\xff\xff\xff" * 900 + bytes(2**20),  # lists that claim two thousand million values each
        b"\xdf\xff\xff\xff\xff",
    ]
    begin = time.process_time()
    for frame in frames:
        with pytest.raises(BadRequest, match=f"more than {limits.objects} values"):
            parse_request(frame, limits)
    assert time.process_time() - begin < 0.05 * len(frames)


def test_the_limits_leave_room_for_what_a_policy_needs() -> None:
    spec = ObservationSpec({"state": 500, "front": 64}, 2, {"front": (96, 96, 3)})
    limits = DecodeLimits.of(spec)
    image = np.zeros((2, 96, 96, 3), np.uint8)
    lists = {"state": np.zeros((2, 500)).tolist(), "front": image, "more": [0] * 1000}
    assert len(unpack(pack({"__request__": "infer", "id": 1, "observation": lists}), limits)) == 3


@given(st.recursive(st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()),
       lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_every_format_is_measured_to_its_last_byte(value: Any) -> None:
    frame = msgpack.packb(value)
    count = len(frame)
    _check_size(frame, DecodeLimits(objects=count + 1, depth=100))
    if count > 1:
        with pytest.raises(FrameError):
            unpack(frame[:-1])


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
                    assert all(part.dtype == np.float32 for part in history.window().values())
            except (BadRequest, RequestRefused) as error:
                seen["refused"] += 1
                assert 0 < len(str(error)) < 1500

    judge()
    assert seen["frames"] >= 10_000, seen
    assert 0.5 < seen["refused"] / seen["frames"] < 1, "most are wrong, and some are right: both paths were taken"
    history.add(observation())
