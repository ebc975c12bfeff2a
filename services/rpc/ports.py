"""Ports that a program can be given for good: it finds them free again when it is started again."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _LAST = 10_000, 32_767
_TRIES = 50


def bind_free_port(listener: socket.socket, host: str) -> int:
    """Bind a socket to a port of `host` that is free, and return it.

    If there is one, it is a port that the system gives to no connection by itself: another one could be taken
    by any program's connection while nobody listens. Raises OSError if the host has none at all.
    """
    lowest = _lowest_of_the_system()
    for port in random.sample(range(_FIRST, lowest), min(_TRIES, max(lowest - _FIRST, 0))):
        try:
            listener.bind((host, port))
        except OSError:
            continue
        return port
    listener.bind((host, 0))
    return int(listener.getsockname()[1])


def _lowest_of_the_system() -> int:
    try:
        return int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # a system that does not tell
        return _LAST
