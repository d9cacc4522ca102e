"""Frames that somebody who means ill, or whose program is broken, would send."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import strategies as st
from serving_fakes import observation

from specpolicy.serving.protocol import pack

GOOD = [
    pack(observation(1.0)),
    pack({"__request__": "infer", "id": 3, "observation": observation(2.0)}),
    pack({"__request__": "observe", "observation": observation(3.0)}),
    pack({"__request__": "reset", "id": 4, "seed": 5}),
]
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from(["infer", "observe", "reset", "predict_action", "<f4", "|O", "O", "V8", "<f16", "f4,f4"]),
)
_names = st.sampled_from(["pose", "grip", "__request__", "id", "seed", "observation", "prompt", b"dtype", b"shape"])


def _array_likes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {},
        optional={
            b"__ndarray__": st.just(True),
            b"__npgeneric__": st.just(True),
            b"data": st.one_of(st.binary(max_size=32), _scalars),
            b"dtype": st.one_of(st.sampled_from(["<f4", "<f8", "|u1", "|O", "O", "<U4", "V4", "?"]), inner),
            b"shape": st.one_of(st.lists(st.integers(-2, 2**33), max_size=9), inner),
        },
    )


_values: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_names, inner, max_size=3), _array_likes(inner)
    ),
    max_leaves=6,
)


@st.composite
def hostile_frames(draw: st.DrawFn, count: int) -> list[bytes]:
    """Noise, well-formed messages with nonsense in them, and both kinds, and good ones, with bytes changed or cut off.

    Every damaged frame takes its damage from four drawn bytes, which is quicker to draw than four numbers.
    """
    nonsense = msgpack.packb(draw(st.dictionaries(_names, _values, max_size=4)))
    noise = draw(st.binary(max_size=64))
    bases = [nonsense, draw(st.sampled_from(GOOD)), noise]
    damage = draw(st.binary(min_size=4 * (count - 2), max_size=4 * (count - 2)))
    frames = [nonsense, noise]
    for at in range(0, len(damage), 4):
        where, what, cut, which = damage[at : at + 4]
        frame = bytearray(bases[which % 3])
        if frame:
            frame[where % len(frame)] = what
            frame = frame[: cut % (len(frame) + 1)] if which >= 192 else frame
        frames.append(bytes(frame))
    return frames
