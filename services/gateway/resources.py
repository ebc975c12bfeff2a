"""What Envoy is told of requests: the routes that apps share, and the scopes that lead to them. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from services.gateway.answers import nobody
from services.gateway.canary import with_share
from services.gateway.clusters import cluster_name, grpc_cluster_name
from services.gateway.routes import Destination
from services.gateway.xds.cache import ROUTES, SCOPE
from services.gateway.xds.messages import message, parsed, typed

ROUTE_HEADER = "x-appsupervisor-route"
"""By which a request's scope is found; the host, or what route.lua has found."""
SCRIPTS = ("route", "route-again")
"""Names of the two filters that run route.lua."""
MISS_HEADER = "x-appsupervisor-miss"
"""By what route.lua has looked for the app, or why it has found none."""
OWN_HEADERS = (ROUTE_HEADER, MISS_HEADER, "x-appsupervisor-value")

SELECTIONS = 30
"""Draws for a host that has not been tried. A dead one has no requests, and so is taken three times of
four where there are two: of what was tried four times, with three draws more, one in fifty met no other."""
STREAM_IDLE_SECONDS = 3600
"""For a WebSocket over which nothing is said."""
BRIDGE = "grpc"
"""Name of the filter that makes trailers of headers, for nodes that have none."""

_REPEATABLE = "GET|HEAD|OPTIONS|PUT|DELETE|TRACE"
"""Methods that may be carried out twice (RFC 9110 §9.2.2)."""
_UNSENT = "connect-failure,refused-stream,reset-before-request"
_PASSING = ("NODE_DRAINING", "INSTANCE_STOPPING")
"""Answers of a node itself after which another try finds another instance."""
_NOT_BEGUN = ("NODE_DRAINING", "SERVER_BUSY")
"""Answers of a node to what it has not given to the app: another replica may have it, in any method."""
_WEBSOCKET = {"name": "upgrade", "string_match": {"exact": "websocket", "ignore_case": True}}


# --- names ---


def routes_name(destination: Destination) -> str:
    """Return the name of the routes that apps with this destination share."""
    secure = "/https" if destination.to_https else ""
    if not destination.nodes:
        return f"nobody/{destination.reason}{secure}"
    share = f"~{destination.share.name}" if destination.share is not None else ""
    return f"{cluster_name(destination)}/{destination.timeout}s{secure}{share}"


def keeper_name(routes: str) -> str:
    """Return the key of the scope that makes an Envoy keep routes: no host name, so no request has it."""
    return "k:" + routes


# --- messages ---


FOUND = {"filter_metadata": {"envoy.filters.http.lua": {"found": True}}}
"""By which route.lua knows, on each route, that a name leads somewhere."""


def scope(key: str, routes: str) -> Any:
    """Return the scope that leads requests with a key to routes."""
    return message(SCOPE)(name=key, route_configuration_name=routes, key={"fragments": [{"string_key": key}]})


def keeper(routes: str) -> Any:
    """Return the scope that makes an Envoy ask for routes before the first app needs them, and keep them."""
    return scope(keeper_name(routes), routes)


def routes(destination: Destination, *, http2: bool = False) -> Any:
    """Return the routes of a destination: all requests to its nodes, or the answer that there is nobody.

    `http2`: its nodes speak that, those of a version on trial too, and so calls of gRPC reach them whole.
    """
    name = routes_name(destination)
    content: dict[str, Any] = {
        "name": name,
        "request_headers_to_remove": [*OWN_HEADERS, "x-envoy-external-address"],
        # What has found its routes needs no script to find them.
        "typed_per_filter_config": dict.fromkeys(
            SCRIPTS, typed("envoy.config.route.v3.FilterConfig", disabled=True)
        ),
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [
                    {**rule, "metadata": FOUND}
                    for rule in (*_to_https(destination.to_https), *_rules(destination, http2=http2))
                ],
            }
        ],
    }
    if not destination.nodes:
        content["max_direct_response_body_size_bytes"] = 4096
    return parsed(ROUTES, content)


def _to_https(port: int) -> list[dict[str, Any]]:
    """Return the rule that sends plain requests to HTTPS, but for those that name their app otherwise."""
    if not port:
        return []
    plain = {"name": "x-forwarded-proto", "string_match": {"exact": "http"}}
    by_host = {
        "name": MISS_HEADER,
        "string_match": {"safe_regex": {"regex": "header|path"}},
        "invert_match": True,
        "treat_missing_header_as_empty": True,
    }
    there = {"https_redirect": True, "port_redirect": port, "response_code": "PERMANENT_REDIRECT"}
    return [{"match": {"prefix": "/", "headers": [plain, by_host]}, "redirect": there}]


def _rules(destination: Destination, *, http2: bool) -> list[dict[str, Any]]:
    if not destination.nodes:
        problem = nobody(destination.reason)
        return [
            {
                "match": {"prefix": "/"},
                "direct_response": {"status": problem.status, "body": {"inline_string": problem.body()}},
                "response_headers_to_add": problem.headers(),
            }
        ]
    repeatable = {"name": ":method", "string_match": {"safe_regex": {"regex": _REPEATABLE}}}
    several = len(destination.nodes) > 1
    repeated = _forward(destination, f"{_UNSENT},reset", {*_PASSING, *(_NOT_BEGUN if several else ())})
    rules: list[dict[str, Any]] = [
        # Open for hours, and bounded by themselves: they take no request's place.
        {"match": {"prefix": "/", "headers": [_WEBSOCKET]}, "route": {**repeated, "priority": "HIGH"}},
        {"match": {"prefix": "/", "headers": [repeatable]}, "route": repeated},
        {
            "match": {"prefix": "/"},
            "route": _forward(destination, _UNSENT, set(_NOT_BEGUN) if several else set()),
        },
    ]
    calls = [_grpc_rule(rules[-1], destination)] if http2 else []
    share, shared = destination.share, destination.shared
    if share is None or shared is None:
        return calls + rules
    return with_share(calls, share, grpc_cluster_name(shared)) + with_share(
        rules, share, cluster_name(shared)
    )


def _grpc_rule(rule: dict[str, Any], destination: Destination) -> dict[str, Any]:
    """Return the rule for calls of gRPC: as any POST, but over HTTP/2 and with the app's own trailers."""
    off = typed(
        "envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.FilterConfigPerRoute", disabled=True
    )
    return {
        "match": {"prefix": "/", "grpc": {}},
        "route": {**rule["route"], "cluster": grpc_cluster_name(destination)},
        "typed_per_filter_config": {BRIDGE: off},
    }


def _forward(destination: Destination, retry_on: str, reasons: Collection[str]) -> dict[str, Any]:
    retries: dict[str, Any] = {
        "retry_on": f"{retry_on},retriable-headers" if reasons else retry_on,
        "num_retries": 3,
        "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"},
        "retriable_headers": [
            {"name": "x-appsupervisor-reason", "string_match": {"exact": reason}}
            for reason in sorted(reasons)
        ],
    }
    if len(destination.nodes) > 1:
        name = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
        retries["retry_host_predicate"] = [{"name": name, "typed_config": typed(name)}]
        retries["host_selection_retry_max_attempts"] = SELECTIONS
    if destination.share is not None:
        name = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
        config = typed(name, update_frequency=1)
        retries["retry_priority"] = {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": config,
        }
    return {
        "cluster": cluster_name(destination),
        "timeout": f"{destination.timeout}s",
        "max_stream_duration": {"grpc_timeout_header_max": f"{destination.timeout}s"},
        "idle_timeout": f"{STREAM_IDLE_SECONDS}s",
        "retry_policy": retries,
    }
