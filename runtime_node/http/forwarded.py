"""Who a request comes from when a trusted proxy says so (`X-Forwarded-For`, `X-Forwarded-Proto`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from runtime_node.asgi import Scope

_LONGEST_CHAIN = 32
_REMEMBERED = 1024
"""Addresses."""


class TrustedProxies:
    """The proxies whose word is taken: their headers reach the app, everybody else's are dropped."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Take addresses or networks in CIDR form. Raises ValueError."""
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(text) for text in networks]
        # Asked of each connection, most of which come from a few addresses.
        self._known = lru_cache(_REMEMBERED)(self._look_up)

    def trusts(self, address: str) -> bool:
        """Tell whether the address is one of the proxies'."""
        return self._known(address)

    def _look_up(self, address: str) -> bool:
        try:
            ip = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self._networks)

    def apply(self, scope: Scope) -> None:
        """Set `client` and `scheme` of a scope whose peer is trusted.

        The client is the last address in `X-Forwarded-For` that is not a trusted proxy: everything
        before it could have been written by anybody.
        """
        client = scope["client"]
        if client is None or not self.trusts(client[0]):
            return
        chain: list[str] = []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                chain += [part.strip() for part in value.decode("latin-1").split(",")]
            elif name == b"x-forwarded-proto" and value.strip().lower() in (b"http", b"https"):
                scope["scheme"] = value.strip().lower().decode("ascii")
        for address in reversed(chain[-_LONGEST_CHAIN:]):
            try:
                ip_address(address)
            except ValueError:
                return
            scope["client"] = (address, 0)
            if not self.trusts(address):
                return
