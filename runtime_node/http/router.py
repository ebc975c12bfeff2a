"""Which gate answers a request: by name under the base domain, by domain or wildcard, by header, by path.

Changed by the control loop, read by the front loop; a lookup is a hash lookup and takes no lock.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

from runtime_node.http.authority import AuthorityParser, is_local, normal_domain
from runtime_node.http.gate import Gate
from runtime_node.http.problems import HOST_NOT_LISTED, Problem, app_not_found, malformed, no_app_named
from services.spec.scalars import WILDCARD

_APP_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PREFIX = b"/apps/"
_BEGIN = len(_PREFIX)
_CACHED_HOSTS = 1024
_MALFORMED_HOST = malformed("Host must name one host, with an optional port.")


_NONE: frozenset[str] = frozenset()


class Router:
    """The node's routes. `base_domain` makes each app answer as `{app}.{base_domain}`."""

    def __init__(
        self, base_domain: str = "localhost", *, path_hosts: Sequence[str] = (), hosts_only: bool = False
    ) -> None:
        """Apps are found by path and by X-App under loopback names, IP addresses, the base domain itself and
        `path_hosts`, and with `hosts_only` never. Raises ValueError for what is no host name."""
        self.base_domain = normal_domain(base_domain)
        self._suffix = "." + self.base_domain
        # Any other name may be an attacker's, who makes it point here (DNS rebinding).
        self._path_hosts = frozenset(("", self.base_domain, *map(normal_domain, path_hosts)))
        self._trusted: dict[str, bool] = {}
        """Of the hosts asked for last, whether apps are found by path and by X-App under them."""
        self._hosts_only = hosts_only
        self._lock = threading.Lock()
        self._apps: dict[str, Gate] = {}
        """The one place where an app's gate stands, so that all its names switch at once."""
        self._names: dict[str, frozenset[str]] = {}
        """The domains of those apps that have any."""
        self._domains: dict[str, str] = {}
        """The app of each domain."""
        self._wildcards: dict[str, str] = {}
        """By what stands behind the asterisk and its dot."""
        self.authorities = AuthorityParser()
        self._nobody = no_app_named(self.base_domain, hosts_only=hosts_only)
        self._refusal: Problem | None = None

    def set(self, app_id: str, domains: Sequence[str], gate: Gate) -> None:
        """Make `gate` answer for the app and for its domains, instead of what did before. Thread-safe.

        A request sees the old gate or the new one, never neither. A domain that another app has is
        taken over. Raises ValueError for a malformed domain; then nothing has changed.
        """
        names = frozenset(map(_normal, domains)) if domains else _NONE
        with self._lock:
            # First: a domain that it takes over leads to it from then on.
            self._apps[app_id] = gate
            for name in names:
                places, key = self._place(name)
                places[key] = app_id
            for name in self._names.pop(app_id, _NONE) - names:
                self._drop_domain(name, app_id)
            if names:
                self._names[app_id] = names

    def remove(self, app_id: str, gate: Gate) -> bool:
        """Remove the app's route if `gate` still answers for it; tell whether it did. Thread-safe."""
        with self._lock:
            if self._apps.get(app_id) is not gate:
                return False
            for name in self._names.pop(app_id, _NONE):
                self._drop_domain(name, app_id)
            del self._apps[app_id]
            return True

    def refuse(self, problem: Problem | None) -> None:
        """Answer every new request with a problem from now on, whichever app it is for; None ends that.

        Requests that were let in go on. Thread-safe.
        """
        self._refusal = problem

    def gate_of(self, app_id: str) -> Gate | None:
        """Return the gate that answers for the app now. Thread-safe."""
        return self._apps.get(app_id)

    def __len__(self) -> int:
        return len(self._apps)

    def _drop_domain(self, name: str, app_id: str) -> None:
        places, key = self._place(name)
        if places.get(key) == app_id:
            del places[key]

    def _place(self, domain: str) -> tuple[dict[str, str], str]:
        """Return where a domain's route is kept, and under which key."""
        if domain.startswith(WILDCARD):
            return self._wildcards, domain.removeprefix(WILDCARD)
        return self._domains, domain

    def lookup(
        self, authority: bytes, x_app: bytes | None, raw_path: bytes, query: bytes = b""
    ) -> tuple[Gate, str] | Problem:
        """Return the gate and the root path, or the problem to answer with. Called on the front loop.

        `raw_path` is compared as it came, undecoded, so an encoded slash or dot never moves a request
        from one app to another.
        """
        if self._refusal is not None:
            return self._refusal
        host = self.authorities.parse(authority)
        if host is None:
            return _MALFORMED_HOST
        # An app's own address first: no other app's domain may stand before it, whichever came later.
        is_below_base = host.endswith(self._suffix)
        if is_below_base:
            app_id = host[: -len(self._suffix)]
            gate = self._apps.get(app_id)
            if gate is not None:
                return gate, ""
            if "." not in app_id:
                return app_not_found("host", host)
        owner = self._domains.get(host)
        if owner is None and self._wildcards and host not in self._path_hosts:
            owner = self._wildcards.get(host.partition(".")[2])
        gate = self._apps.get(owner or "")
        if gate is not None:
            return gate, ""
        if is_below_base:
            return app_not_found("host", host)
        if x_app is None and not raw_path.startswith(_PREFIX):
            return self._nobody
        if self._hosts_only:
            return self._nobody
        trusted = self._trusted.get(host)
        if not (self._is_trusted(host) if trusted is None else trusted):
            return HOST_NOT_LISTED
        if x_app is not None:
            return self._by_header(x_app)
        return self._by_path(raw_path, query)

    def _is_trusted(self, host: str) -> bool:
        trusted = host in self._path_hosts or is_local(host)
        if len(self._trusted) >= _CACHED_HOSTS:
            self._trusted.clear()
        self._trusted[host] = trusted
        return trusted

    def _by_header(self, x_app: bytes) -> tuple[Gate, str] | Problem:
        app_id = x_app.decode("latin-1")
        gate = self._apps.get(app_id)
        return (gate, "") if gate is not None else _unknown("X-App header", app_id)

    def _by_path(self, raw_path: bytes, query: bytes) -> tuple[Gate, str] | Problem:
        end = raw_path.find(b"/", _BEGIN)
        app_id = (raw_path[_BEGIN:] if end < 0 else raw_path[_BEGIN:end]).decode("latin-1")
        gate = self._apps.get(app_id)
        if gate is None:
            return _unknown("path", app_id) if app_id else self._nobody
        if end < 0:
            # Relative links of an app's first page resolve only below a slash.
            location = raw_path + b"/" + (b"?" + query if query else b"")
            return Problem(307, "TRAILING_SLASH", "The app's root ends in a slash.", location=location)
        return gate, "/apps/" + app_id


def _normal(domain: str) -> str:
    name = domain.removeprefix(WILDCARD)
    return domain[: len(domain) - len(name)] + normal_domain(name)


def _unknown(by: str, app_id: str) -> Problem:
    return app_not_found(by, app_id if _APP_ID.fullmatch(app_id) else None)
