"""What an Envoy or a gRPC client must know before it can ask: its name, where the gateway's xDS is. Pure.

`python -m services.gateway.bootstrap` prints it for an Envoy that somebody else runs, and with `--grpc` for
clients.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

XDS_CLUSTER = "xds"
_TYPE = "type.googleapis.com/"
_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECTIONS = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"


def bootstrap(
    node_id: str, xds_address: str, *, admin_socket: str = "", max_connections: int = 10_000
) -> dict[str, Any]:
    """Return the bootstrap as JSON. `xds_address` is host:port; without a socket nobody can administer it."""
    source = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    settings: dict[str, Any] = {
        "node": {"id": node_id, "cluster": "gateway"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER}}],
            },
            "cds_config": source,
            "lds_config": source,
        },
        "static_resources": {"clusters": [_xds_cluster(xds_address)]},
        "overload_manager": {"resource_monitors": [_bound_on(max_connections)]},
    }
    if admin_socket:
        settings["admin"] = {"address": {"pipe": {"path": admin_socket, "mode": 0o600}}}
    return settings


def _xds_cluster(address: str) -> dict[str, Any]:
    """Return how the gateway's xDS is reached: over HTTP/2, and given up when it does not answer pings."""
    host, _, port = address.rpartition(":")
    place = {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
    keepalive = {"connection_keepalive": {"interval": "10s", "timeout": "5s"}}
    return {
        "name": XDS_CLUSTER,
        "type": "STRICT_DNS",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {
            _HTTP: {"@type": _TYPE + _HTTP, "explicit_http_config": {"http2_protocol_options": keepalive}}
        },
        "load_assignment": {
            "cluster_name": XDS_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": place}}]}],
        },
    }


def _bound_on(connections: int) -> dict[str, Any]:
    """Return the bound on clients' connections."""
    return {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {"@type": _TYPE + _CONNECTIONS, "max_active_downstream_connections": connections},
    }


def grpc_bootstrap(node_id: str, xds_addresses: str) -> dict[str, Any]:
    """Return what a gRPC client reads from GRPC_XDS_BOOTSTRAP_CONFIG, or in the file of GRPC_XDS_BOOTSTRAP.

    The format is that of gRFC A27; the connection is as open as the gateway's xDS port. Of several gateways,
    separated by commas, the next one is asked while the one before cannot be reached (A71).
    """
    servers = [
        {"server_uri": address, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
        for address in xds_addresses.split(",")
    ]
    return {"xds_servers": servers, "node": {"id": node_id}}


def main() -> None:
    """Print a bootstrap."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--grpc", action="store_true", help="for gRPC clients without a proxy (GRPC_XDS_BOOTSTRAP)"
    )
    parser.add_argument(
        "--node-id",
        help="its name among a gateway's; envoy-1 or client-1",
    )
    parser.add_argument(
        "--xds-address",
        default="127.0.0.1:18000",
        help="host:port of the gateway's xDS; for gRPC clients also several, separated by commas",
    )
    parser.add_argument("--max-connections", type=int, default=10_000, help="connections an Envoy accepts")
    told = parser.parse_args()
    settings = (
        grpc_bootstrap(told.node_id or "client-1", told.xds_address)
        if told.grpc
        else bootstrap(told.node_id or "envoy-1", told.xds_address, max_connections=told.max_connections)
    )
    json.dump(settings, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
