"""Messages between node, zygote and guests: versioned JSON in one datagram, with file descriptors.

The sockets are SOCK_SEQPACKET: the kernel keeps message boundaries, so a length is never guessed and a
message comes whole, with its descriptors, or not at all.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 64 << 10
MAX_DESCRIPTORS: Final = 8
MAX_PARCEL_BYTES: Final = 8 << 20

_SO_PASSRIGHTS: Final = 83
"""Linux 6.16; the socket module has no name for it yet."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class WireError(Exception):
    """A message breaks the rules: too long, of another version, or no JSON object."""


class ClosedError(Exception):
    """The peer closed its end, or it is gone."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected message sockets, neither inherited by a program that is executed."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one message. Raises WireError when it is too long, ClosedError when nobody can read it.

    A non-blocking socket whose peer doesn't read raises BlockingIOError.
    """
    data = json.dumps({"v": VERSION, **message}, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes is longer than {MAX_MESSAGE_BYTES}")
    try:
        socket.send_fds(sock, [data], list(descriptors))
    except (BrokenPipeError, ConnectionError) as error:
        raise ClosedError("the peer is gone") from error


def refuse_descriptors(sock: socket.socket) -> bool:
    """Have the kernel refuse descriptors that a peer sends to this socket; return whether it can.

    Whoever gets a descriptor also closes it, unread ones too, and a TCP connection can be told to make its
    close wait for an hour: a guest that sends one would hang its node.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def discard(descriptors: Iterable[int]) -> None:
    """Close descriptors that somebody else sent, without waiting for what they are connected to."""
    for descriptor in descriptors:
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            continue
        with sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return one message and its descriptors (close-on-exec, owned by the caller).

    Raises ClosedError at the end of the stream and WireError for a message that is not ours, whatever is
    wrong with it; a non-blocking socket with nothing to read raises BlockingIOError. Then no descriptor is
    left open.
    """
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    try:
        data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError as error:
        raise ClosedError("the peer is gone") from error
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    try:
        return _parse(data, flags, bool(descriptors)), list(descriptors)
    except BaseException:
        discard(descriptors)
        raise


def _parse(data: bytes, flags: int, with_descriptors: bool) -> dict[str, Any]:
    if not data and not with_descriptors:
        raise ClosedError("the peer closed its end")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise WireError("a message is longer than allowed")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError("a message is not JSON") from error
    if not isinstance(message, dict) or message.pop("v", None) != VERSION:
        raise WireError("a message is of another version")
    return message


def text(value: object, longest: int) -> str:
    """Return what a guest told as text, at most `longest` characters, fit to be stored and sent on.

    JSON can hold halves of surrogate pairs, which no protobuf, file or terminal takes.
    """
    told = value if isinstance(value, str) else ""
    return told[:longest].encode(errors="replace").decode()


def pack_parcel(content: dict[str, Any]) -> int:
    """Return a memory file that holds `content`. A guest reads its own; the zygote never does.

    So no app's secrets ever lie in the memory that the next app's process is copied from. Raises
    WireError beyond `MAX_PARCEL_BYTES`. The caller closes the descriptor.
    """
    data = json.dumps(content, separators=(",", ":")).encode()
    if len(data) > MAX_PARCEL_BYTES:
        raise WireError(f"a start of {len(data)} bytes is longer than {MAX_PARCEL_BYTES}")
    descriptor = os.memfd_create("parcel", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_parcel(descriptor: int) -> dict[str, Any]:
    """Return a parcel's content and close its descriptor."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        content: dict[str, Any] = json.load(file)
    return content
