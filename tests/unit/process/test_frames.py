"""Frames between front and guest: what goes in comes out, and a hostile guest's bytes are refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_node.tiers.process import frames
from runtime_node.tiers.process.frames import Frame, MalformedFrameError, Reader, frame

HEADERS = st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=200)), max_size=20)


@given(st.lists(st.tuples(st.sampled_from(Frame), st.binary(max_size=300)), max_size=20), st.data())
def test_frames_survive_any_cut_of_the_stream(sent: list[tuple[Frame, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame(kind, payload) for kind, payload in sent)
    reader = Reader(frames.MAX_FRAME_BYTES)
    got = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        reader.feed(stream[:size])
        stream = stream[size:]
        count = data.draw(st.integers(1, 4))
        while reader.ready:
            taken = reader.take(count)
            assert len(taken) <= count
            got += taken
    assert got == sent
    assert reader.waiting_bytes == 0


def test_a_frame_that_is_too_long_is_refused_by_its_header_alone() -> None:
    reader = Reader(100)
    reader.feed(struct.pack("<BI", Frame.PART, 101))
    with pytest.raises(MalformedFrameError):
        reader.take()


def test_a_frame_that_comes_byte_by_byte_is_put_together_once() -> None:
    payload = bytes(100_000)
    reader = Reader(len(payload))
    for byte in frame(Frame.PART, payload):
        assert not reader.ready or reader.take() == []
        reader.feed(bytes([byte]))
    # Were what waits copied for each byte, this would be five gigabytes, not a few copies of the frame.
    assert reader.take() == [(Frame.PART, payload)]
    assert reader.take() == []


@given(st.integers(100, 999), HEADERS)
def test_a_response_start_comes_out_as_it_went_in(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    assert frames.unpack_start(frames.pack_start(status, headers)) == (status, headers, False)
    assert frames.unpack_start(frames.pack_start(status, headers, True))[2] is True


@given(st.binary(max_size=200))
def test_random_bytes_are_a_response_start_or_refused(payload: bytes) -> None:
    try:
        status, headers, _ = frames.unpack_start(payload)
    except MalformedFrameError:
        return
    assert frames.pack_start(status, headers)[-1:] == payload[-1:]
    assert sum(len(name) + len(value) for name, value in headers) <= len(payload)


def test_response_headers_beyond_the_bound_are_refused() -> None:
    with pytest.raises(ValueError, match="exceed"):
        frames.pack_start(200, [(b"x", b"y" * frames.MAX_FRAME_BYTES)])
    with pytest.raises(ValueError, match="more than"):
        frames.pack_start(200, [(b"x", b"")] * (frames.MAX_HEADERS + 1))


def test_more_headers_than_allowed_are_refused_by_their_number_alone() -> None:
    pair = struct.pack("<HI", 1, 0) + b"a"
    count = frames.MAX_HEADERS + 1
    with pytest.raises(MalformedFrameError):
        frames.unpack_start(struct.pack("<HBI", 200, 0, count) + pair * count)


@given(st.integers(0, 3 * frames.MAX_FRAME_BYTES))
def test_a_long_body_is_split_into_frames_that_join_to_it(length: int) -> None:
    body = b"b" * length
    reader = Reader(frames.MAX_FRAME_BYTES)
    reader.feed(b"".join(frames.split(Frame.PART, Frame.LAST, body)))
    got = reader.take()
    assert b"".join(payload for _, payload in got) == body
    assert [kind for kind, _ in got] == [Frame.PART] * (len(got) - 1) + [Frame.LAST]


def test_a_scope_carries_what_asgi_defines_and_nothing_of_the_front() -> None:
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": "/ü",
        "raw_path": b"/%C3%BC", "query_string": b"", "root_path": "/r", "scheme": "http",
        "headers": [(b"a", b"\xff")], "client": ["::1", 5], "server": None, "state": {"x": object()},
        "extensions": {"http.response.pathsend": {}, "websocket.http.response": {}}, "front": object(),
    }  # fmt: skip
    follows, got = frames.unpack_scope(frames.pack_scope(scope, True))
    assert follows
    assert got["client"] == ("::1", 5)
    assert got["extensions"] == {"websocket.http.response": {}}
    assert {"state", "front"}.isdisjoint(got)
    assert got["headers"] == scope["headers"]
