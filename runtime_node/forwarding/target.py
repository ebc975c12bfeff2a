"""Where an app is that has moved: a node and the address at which it serves HTTP. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]{1,253})):(?P<port>[0-9]{1,5})")


class Target(NamedTuple):
    """A node that is forwarded to."""

    host: str
    port: int
    node: str = ""
    """Its resource name, for the log."""
    serves_http2: bool = False
    """By prior knowledge, beside HTTP/1.1."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(address: str, node: str = "", *, serves_http2: bool = False) -> Target:
    """Take `host:port` or `[v6]:port` apart. Raises ValueError for anything else."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError("is not `host:port`")
    return Target(match["six"] or match["host"], int(match["port"]), node, serves_http2)
