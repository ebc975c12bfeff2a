"""What Envoy is told of where requests go: clusters, a node's or one of an app that has bounds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from services.gateway.routes import MAX_REQUESTS, Destination
from services.gateway.xds.cache import CLUSTER
from services.gateway.xds.messages import parsed, typed

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

MAX_PENDING = 1024
"""Requests that wait for a new connection."""
CONSECUTIVE_5XX = 10
"""Answers after which a replica is left out: a busy one still gives others in between."""
IDLE_SECONDS = 3
"""A node closes a connection after 5 s without a request: this side does so before."""
GRPC_IDLE_SECONDS = 45
"""A node closes a connection of HTTP/2 after 60 s without a request."""
NODE_STREAMS = 100
"""Requests at a time that a node takes on one connection of HTTP/2."""


def cluster_name(destination: Destination) -> str:
    """Return the name of the cluster to which requests go: a node's, or an app's own."""
    return destination.own or destination.nodes[0]


def grpc_cluster_name(destination: Destination) -> str:
    """Return the name of the cluster to which calls of gRPC go where all nodes speak HTTP/2."""
    return f"{cluster_name(destination)}/grpc"


def cluster(
    destination: Destination, addresses: Sequence[str], instead: Sequence[str] = (), *, grpc: bool = False
) -> Any:
    """Return the cluster of a destination, by the addresses (`host:port`) at which its nodes serve HTTP.

    `instead`: those of the nodes that are asked where these are not reached; `grpc`: the one for calls of
    gRPC, over HTTP/2.
    """
    ranks = (addresses, instead) if instead else (addresses,)
    places = [[place(address) for address in some] for some in ranks]
    named = any(not is_ip(place["address"]) for some in places for place in some)
    name = grpc_cluster_name(destination) if grpc else cluster_name(destination)
    protocol = (
        {"http2_protocol_options": {"max_concurrent_streams": NODE_STREAMS}}
        if grpc
        else {"http_protocol_options": {}}
    )
    idle = GRPC_IDLE_SECONDS if grpc else IDLE_SECONDS
    return parsed(
        CLUSTER,
        {
            "name": name,
            "type": "STRICT_DNS" if named else "STATIC",
            # Nodes that listen on 0.0.0.0 or 127.0.0.1 answer nobody who took a name's other address.
            "dns_lookup_family": "V4_PREFERRED",
            "lb_policy": "LEAST_REQUEST",
            "connect_timeout": "2s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [
                    {
                        "priority": priority,
                        "lb_endpoints": [{"endpoint": {"address": {"socket_address": it}}} for it in some],
                    }
                    for priority, some in enumerate(places)
                ],
                # While one of the first is well it has all that is theirs.
                **({"policy": {"overprovisioning_factor": 10_000}} if len(places) > 1 else {}),
            },
            "circuit_breakers": {
                "thresholds": [
                    _threshold("DEFAULT", destination.bound or MAX_REQUESTS),
                    _threshold("HIGH", MAX_REQUESTS * len(destination.nodes)),
                ]
            },
            "outlier_detection": _outliers(judged=len(destination.nodes) > 1),
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            "typed_extension_protocol_options": {
                HTTP_OPTIONS: typed(
                    HTTP_OPTIONS,
                    explicit_http_config=protocol,
                    common_http_protocol_options={"idle_timeout": f"{idle}s"},
                )
            },
        },
    )


def _threshold(priority: str, bound: int) -> dict[str, Any]:
    pending = min(bound, MAX_PENDING)
    return {
        "priority": priority,
        # More than requests, one on each: what is too much is told at once, and waits for no connection.
        "max_connections": bound + pending,
        "max_pending_requests": pending,
        "max_requests": bound,
        "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 64},
    }


def _outliers(*, judged: bool) -> dict[str, Any]:
    """Return who is left out for a while: a node that cannot be connected to, and a replica that answers
    nothing but 5xx while the app has others, of which at least half stay."""
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 5,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "consecutive_5xx": CONSECUTIVE_5XX if judged else 0,
        "enforcing_consecutive_5xx": 100 if judged else 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "interval": "0.5s",
        "base_ejection_time": "1s",
        "max_ejection_time": "10s" if judged else "3s",
        "max_ejection_percent": 50 if judged else 100,
    }


def place(address: str) -> dict[str, Any]:
    """Return where `host:port` is, as xDS writes it; an IPv6 address without its brackets."""
    host, _, port = address.rpartition(":")
    return {"address": host.removeprefix("[").removesuffix("]"), "port_value": int(port)}


def is_ip(host: str) -> bool:
    """Tell whether a host is an IP address, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
