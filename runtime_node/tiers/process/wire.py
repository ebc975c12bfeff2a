"""Messages between node, zygote and guests: versioned JSON in one datagram, with file descriptors.

The sockets are SOCK_SEQPACKET: the kernel keeps message boundaries, so a length is never guessed and a
message comes whole, with its descriptors, or not at all.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 64 << 10
MAX_DESCRIPTORS: Final = 8
MAX_PARCEL_BYTES: Final = 8 << 20


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


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return one message and its descriptors (close-on-exec, owned by the caller).

    Raises ClosedError at the end of the stream and WireError for a message that is not ours; a
    non-blocking socket with nothing to read raises BlockingIOError.
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
        if not data and not descriptors:
            raise ClosedError("the peer closed its end")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise WireError("a message is longer than allowed")
        try:
            message = json.loads(data)
        except ValueError as error:
            raise WireError("a message is not JSON") from error
        if not isinstance(message, dict) or message.pop("v", None) != VERSION:
            raise WireError("a message is of another version")
    except (WireError, ClosedError):
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message, list(descriptors)


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
