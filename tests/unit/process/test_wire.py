"""Messages between node, zygote and guests."""

from __future__ import annotations

import os

import pytest

from runtime_node.tiers.process import wire


def test_a_message_comes_whole_with_its_descriptors() -> None:
    ours, theirs = wire.pair()
    read, write = os.pipe()
    with ours, theirs:
        wire.send(ours, {"op": "spawn", "serial": 3}, [write])
        os.close(write)
        message, (received,) = wire.receive(theirs)
        assert message == {"op": "spawn", "serial": 3}
        assert not os.get_inheritable(received)
        os.write(received, b"x")
        assert os.read(read, 1) == b"x"
        os.close(received)
    os.close(read)


def test_the_end_of_the_peer_is_told_to_both_sides() -> None:
    ours, theirs = wire.pair()
    theirs.close()
    with pytest.raises(wire.ClosedError):
        wire.receive(ours)
    with pytest.raises(wire.ClosedError):
        wire.send(ours, {"op": "x"})
    ours.close()


@pytest.mark.parametrize("data", [b"[]", b"{", b'{"v":2}', b"{}", b"\xff"])
def test_what_is_no_message_of_this_version_is_refused(data: bytes) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        ours.send(data)
        with pytest.raises(wire.WireError):
            wire.receive(theirs)


def test_a_message_beyond_the_bound_is_refused_on_both_sides() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        with pytest.raises(wire.WireError):
            wire.send(ours, {"x": "y" * wire.MAX_MESSAGE_BYTES})
        ours.send(b"z" * (wire.MAX_MESSAGE_BYTES + 1))
        with pytest.raises(wire.WireError):
            wire.receive(theirs)


def test_a_parcel_is_read_once_by_whom_it_is_for() -> None:
    content = {"secrets": {"KEY": "ü"}, "size": "x" * 200_000}
    descriptor = wire.pack_parcel(content)
    assert wire.open_parcel(descriptor) == content
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_parcel_beyond_the_bound_is_refused() -> None:
    with pytest.raises(wire.WireError):
        wire.pack_parcel({"x": "y" * wire.MAX_PARCEL_BYTES})
