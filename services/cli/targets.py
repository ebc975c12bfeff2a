"""Where an address leads: host:port, the usual port where none is said, several as one target of gRPC's."""

from __future__ import annotations

import socket

from services.cli.errors import CliError, Exit
from services.rpc.command_line import checked_address

USUAL_PORT = 7400
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:")


def target_of(address: str) -> str:
    """Return gRPC's target for `host[:port][,host[:port]…]`; gRPC's own names are left as they are.

    Of several the first that answers is used. Raises CliError for what is no address, and where none of
    several host names is known.
    """
    if address.startswith(_SCHEMES):
        return address
    ends = [_with_port(one.strip()) for one in address.split(",") if one.strip()]
    if not ends:
        raise CliError("the address must be host:port of a control plane, as 127.0.0.1:7400", Exit.USAGE)
    return ends[0] if len(ends) == 1 else _resolved(ends)


def _with_port(text: str) -> str:
    try:
        if "/" in text:
            raise ValueError(f"{text!r} is a URL")
        return checked_address(text if ":" in text else f"{text}:{USUAL_PORT}", USUAL_PORT)
    except ValueError as wrong:
        raise CliError(
            f"{wrong}: the address must be host:port of a control plane, as 127.0.0.1:7400", Exit.USAGE
        ) from None


def _resolved(ends: list[str]) -> str:
    """Return one target for several: gRPC takes a list of addresses of one family, and no names in it."""
    found: list[tuple[str, str]] = []
    for end in ends:
        host, _, port = end.rpartition(":")
        try:
            told = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError:
            continue  # the others may be known
        hosts = [str(where[0]) for *_, where in told]
        # IPv4 where there is: a machine without IPv6 can use none of a list that has one of IPv6 in it.
        found += [(host, port) for host in [it for it in hosts if ":" not in it] or hosts]
    if not found:
        raise CliError(f"None of the hosts of {','.join(ends)} is known.", Exit.UNREACHABLE)
    if any(":" in host for host, _ in found):
        mapped = (host if ":" in host else f"::ffff:{host}" for host, _ in found)
        return "ipv6:" + ",".join(f"[{host}]:{port}" for host, (_, port) in zip(mapped, found, strict=True))
    return "ipv4:" + ",".join(f"{host}:{port}" for host, port in found)
