"""Host names as they come in `Host`, in request targets and in an app's domains, in one normal form."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address

import idna

# RFC 3986 allows more in a reg-name; DNS names, and the underscore of container networks, need no more.
_AUTHORITY = re.compile(rb"(?:([A-Za-z0-9_.-]{1,254})|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{0,5}))?")
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_CACHED_NAMES = 8192


class AuthorityParser:
    """Parses authorities to normal host names; remembers the latest, bounded, as clients repeat them."""

    def __init__(self) -> None:
        self._known: dict[bytes, str | None] = {}

    def parse(self, authority: bytes) -> str | None:
        """Return the host: lower case, without port and trailing dot, IPv6 compressed in brackets.

        Empty for an empty authority (RFC 9112 §3.2), None for one that is malformed.
        """
        try:
            return self._known[authority]
        except KeyError:
            host = _parse(authority)
            if len(self._known) >= _CACHED_NAMES:
                self._known.clear()
            self._known[authority] = host
            return host


def _parse(authority: bytes) -> str | None:
    if not authority:
        return ""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    name, ipv6, port = match.groups()
    if port and int(port) > 65535:
        return None
    if ipv6 is not None:
        try:
            return f"[{IPv6Address(ipv6.decode('ascii')).compressed}]"
        except AddressValueError:
            return None
    host: str = name.decode("ascii").lower().removesuffix(".")
    if not host or len(host) > 253 or ".." in host or host[0] in ".-" or host[-1] == ".":
        return None
    return host


def is_local(host: str) -> bool:
    """Tell whether a host in normal form is an IP address or a loopback name: nobody can redirect these."""
    return (
        host == "localhost"
        or host.endswith(".localhost")
        or host.startswith("[")
        or _IPV4.fullmatch(host) is not None
    )


def normal_domain(domain: str) -> str:
    """Return a domain of an app's spec in the form requests are compared by: IDN as punycode.

    Raises ValueError for what is no host name.
    """
    try:
        ascii_domain = domain.encode("ascii")
    except UnicodeEncodeError:
        ascii_domain = idna.encode(domain, uts46=True, transitional=False)
    host = _parse(ascii_domain)
    if not host or ":" in domain:
        raise ValueError(f"not a host name: {domain!r}")
    return host
