"""TLS at the edge: which certificate answers which name, and how the HTTPS listener asks for it. Pure.

Envoy asks for a certificate once a client asks for its name (on-demand SDS): the listener never changes, and
one certificate changed is one small message for each of its names that is in use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.gateway.xds.cache import SECRET, Resource
from services.gateway.xds.messages import message, typed

_TLS = "envoy.extensions.transport_sockets.tls"
_SOURCE = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
NO_NAME = "-"
"""What is asked for where a client names nothing; no certificate has it."""

Changed = Callable[[str], None]
"""Takes a name whose certificate is another one now: a host name, or `*.` and one for all right below it."""


@dataclass(frozen=True, slots=True)
class Served:
    """One certificate with its key, as Envoy gets it. Shown without its key."""

    name: str
    domains: tuple[str, ...]
    expires: int
    """µs since the Unix epoch."""
    chain: str
    private_key: str

    def __repr__(self) -> str:
        return f"Served({self.name})"


class CertificateTable(Mapping[str, Resource]):
    """The certificates; as a mapping, the secret that answers a host name. Belongs to the cache's loop."""

    def __init__(self, changed: Changed = lambda _: None) -> None:
        """`changed` is told of each name whose certificate is another one now."""
        self._changed = changed
        self._served: dict[str, Served] = {}
        self._claims: dict[str, list[Served]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the certificates."""
        return list(self._served)

    def put(self, served: Served) -> None:
        """Answer with a certificate from now on, instead of the one of its name before."""
        before = self._served.get(served.name)
        if served == before:
            return
        self._served[served.name] = served
        self._replace(before, served)

    def remove(self, name: str) -> None:
        """Forget a certificate."""
        before = self._served.pop(name, None)
        if before is not None:
            self._replace(before, None)

    def _replace(self, before: Served | None, after: Served | None) -> None:
        names = dict.fromkeys((*(before.domains if before else ()), *(after.domains if after else ())))
        best = {name: self._best(name) for name in names}
        for name in names:
            claims = [it for it in self._claims.get(name, ()) if before is None or it.name != before.name]
            if after is not None and name in after.domains:
                claims.append(after)
            if claims:
                self._claims[name] = claims
            else:
                self._claims.pop(name, None)
        for name in names:
            if self._best(name) != best[name]:
                self._changed(name)

    def _best(self, name: str) -> Served | None:
        """Return the one that is valid longest: a renewed one wins, also beside its elder."""
        claims = self._claims.get(name)
        return max(claims, key=lambda it: (it.expires, it.name)) if claims else None

    def covers(self, host: str) -> bool:
        """Tell whether a host name, or each of a wildcard, has a certificate."""
        return host in self._claims or _wildcard(host) in self._claims

    def __getitem__(self, asked: str) -> Resource:
        host = asked.lower().removesuffix(".")
        served = self._best(host) or self._best(_wildcard(host))
        if served is None or "*" in host:
            raise KeyError(asked)
        value = secret(asked, served).SerializeToString(deterministic=True)
        return Resource(hashlib.blake2b(value, digest_size=6).hexdigest(), value)

    def __iter__(self) -> Iterator[str]:
        """Yield nothing: there is a secret for each name that may be asked for, and nobody asks for all."""
        return iter(())

    def __len__(self) -> int:
        return len(self._served)


def _wildcard(host: str) -> str:
    """Return the wildcard that is for a host name."""
    return f"*.{host.partition('.')[2]}"


def secret(name: str, served: Served) -> Any:
    """Return a certificate under the name by which Envoy has asked for it."""
    return message(SECRET)(
        name=name,
        tls_certificate={
            "certificate_chain": {"inline_string": served.chain},
            "private_key": {"inline_string": served.private_key},
        },
    )


def transport_socket() -> dict[str, Any]:
    """Return how a listener ends TLS: by the certificate of the name asked for, with HTTP/2 by ALPN."""
    mapper = typed(f"{_TLS}.cert_mappers.sni.v3.SNI", default_value=NO_NAME)
    selector = typed(
        f"{_TLS}.cert_selectors.on_demand_secret.v3.Config",
        config_source=_SOURCE,
        certificate_mapper={"name": "sni", "typed_config": mapper},
    )
    return {
        "name": "tls",
        "typed_config": typed(
            f"{_TLS}.v3.DownstreamTlsContext",
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "alpn_protocols": ["h2", "http/1.1"],
                "custom_tls_certificate_selector": {"name": "on demand", "typed_config": selector},
            },
            # Envoy refuses this selector with either: it could not look again what a name is answered with.
            disable_stateless_session_resumption=True,
            disable_stateful_session_resumption=True,
        ),
    }
