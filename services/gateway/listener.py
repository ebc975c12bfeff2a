"""The one listener: how requests are read, what is believed, how the app is found, what is logged. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources as files
from typing import Any

from services.gateway import answers
from services.gateway.answers import Problem
from services.gateway.resources import BRIDGE, MISS_HEADER, ROUTE_HEADER, SCRIPTS, STREAM_IDLE_SECONDS
from services.gateway.tls import transport_socket
from services.gateway.xds.cache import LISTENER
from services.gateway.xds.messages import parsed, typed

NAME = "apps"
HTTPS_NAME = "apps-https"
STATISTICS = "edge"
"""What the listener's figures begin with, behind `http.`."""

MAX_HEADER_KIB = 64
MAX_HEADERS = 100
BUFFER_BYTES = 64 * 1024
"""Held of one connection in each direction; a larger body cannot be sent a second time."""

HANDSHAKE_TIMEOUT = "10s"
"""Also for a certificate to come that no client has asked this Envoy for before."""

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FROM_CONTROL_PLANE = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}

_NOTES = "appsupervisor"
_PEER = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"
_FORGED = ("x-forwarded", "x-appsupervisor", "x-envoy")
"""What headers begin with that say something a client cannot know, or that only this side may say."""


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """What an operator decides of the listener."""

    host: str
    port: int
    base_domains: tuple[str, ...] = ("localhost",)
    path_hosts: tuple[str, ...] = ()
    access_log: str = ""
    """Path to write to; empty for none."""


def listener(spec: ListenerSpec) -> Any:
    """Return the listener; it never changes while the gateway runs: a change would drain connections."""
    return _listener(NAME, spec, {})


def https_listener(spec: ListenerSpec) -> Any:
    """Return the one for HTTPS: as the other in all else, and as unchanging, whatever certificates come."""
    tls = {"transport_socket": transport_socket(), "transport_socket_connect_timeout": HANDSHAKE_TIMEOUT}
    return _listener(HTTPS_NAME, spec, tls)


def _listener(name: str, spec: ListenerSpec, tls: dict[str, Any]) -> Any:
    address = {"address": spec.host, "port_value": spec.port}
    manager = typed(_HCM, **_manager(spec))
    return parsed(
        LISTENER,
        {
            "name": name,
            "address": {"socket_address": address},
            "per_connection_buffer_limit_bytes": BUFFER_BYTES,
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}], **tls}],
        },
    )


def _manager(spec: ListenerSpec) -> dict[str, Any]:
    return {
        "stat_prefix": STATISTICS,
        "codec_type": "AUTO",
        "scoped_routes": {
            "name": NAME,
            "scope_key_builder": {
                "fragments": [
                    {"header_value_extractor": {"name": ROUTE_HEADER, "element_separator": ":", "index": 0}}
                ]
            },
            "rds_config_source": _FROM_CONTROL_PLANE,
            "scoped_rds": {"scoped_rds_config_source": _FROM_CONTROL_PLANE},
        },
        # Before anything is made of them. Envoy's own X-Forwarded-For has its machine's address in the place
        # of a client's that is a loopback one.
        "early_header_mutation_extensions": [
            {
                "name": "forged",
                "typed_config": typed(
                    "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                    mutations=[
                        *({"remove_on_match": {"key_matcher": {"prefix": start}}} for start in _FORGED),
                        {"remove": "forwarded"},
                        {"remove": "x-real-ip"},
                        {"append": {"header": {"key": "x-forwarded-for", "value": _PEER}}},
                        {"append": {"header": {"key": ROUTE_HEADER, "value": "%REQ(:AUTHORITY)%"}}},
                    ],
                ),
            }
        ],
        "use_remote_address": True,
        "skip_xff_append": True,
        "internal_address_config": {},
        "generate_request_id": True,
        "always_set_request_id_in_response": True,
        "server_header_transformation": "PASS_THROUGH",
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": ""},
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": BUFFER_BYTES,
            "initial_connection_window_size": 1024 * 1024,
        },
        "common_http_protocol_options": {"idle_timeout": "60s", "max_headers_count": MAX_HEADERS},
        "max_request_headers_kb": MAX_HEADER_KIB,
        "request_headers_timeout": "10s",
        "stream_idle_timeout": f"{STREAM_IDLE_SECONDS}s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [
            *(
                {
                    "name": name,
                    "typed_config": typed(
                        "envoy.extensions.filters.http.lua.v3.Lua",
                        default_source_code={"inline_string": script(spec.base_domains, spec.path_hosts)},
                    ),
                }
                for name in SCRIPTS
            ),
            *([_note_route()] if spec.access_log else []),
            # A node of an earlier version has HTTP/1.1 alone, which has no trailers as gRPC needs them: they
            # are made of the headers grpc-status and grpc-message, and of an answer that is none of gRPC.
            # Where there is nobody to answer it tells of that. The routes to other nodes do without it.
            {
                "name": BRIDGE,
                "typed_config": typed(
                    "envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.FilterConfig",
                    content_type="application/grpc",
                ),
            },
            {
                "name": "router",
                "typed_config": typed(
                    "envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True
                ),
            },
        ],
        "local_reply_config": {"mappers": list(_mappers(spec.base_domains[0]))},
        "access_log": [_access_log(spec.access_log)] if spec.access_log else [],
    }


def script(base_domains: Sequence[str], path_hosts: Sequence[str]) -> str:
    """Return route.lua for these domains, which have been checked to be host names."""
    source = files.files("services.gateway").joinpath("route.lua").read_text(encoding="utf-8")
    bases = ", ".join(_quoted(f".{base}") for base in base_domains)
    hosts = ", ".join(f"[{_quoted(host)}] = true" for host in ("localhost", *base_domains, *path_hosts))
    return source.replace("--[[BASES]]", bases).replace("--[[PATH_HOSTS]]", hosts)


def _mappers(base_domain: str) -> list[dict[str, Any]]:
    nobody = answers.no_app_named(base_domain)
    # Why a request has no route, as route.lua has said.
    missing = {
        "host": answers.not_found("host"),
        "header": answers.not_found("X-App header"),
        "path": answers.not_found("path"),
        "foreign": answers.HOST_NOT_LISTED,
        "malformed": answers.MALFORMED_HOST,
        "nobody": nobody,
    }
    mapped = [_mapper(_both(_flags("NR"), _said(why)), problem) for why, problem in missing.items()]
    mapped += [
        _mapper(_flags(*flags), problem)
        for flags, problem in (
            (("UO", "OM", "RL"), answers.OVERLOADED),
            (("UF", "UH", "NC", "LR", "URX"), answers.UNREACHABLE),
            (("UC", "UR"), answers.BROKEN_OFF),
            (("UT", "DT"), answers.TIMEOUT),
            (("IH", "DPE"), answers.MALFORMED),
        )
    ]
    # The body is too large to be kept for another try, after one that reached nobody.
    mapped.append(_mapper(_status(507), answers.UNREACHABLE))
    return mapped


def _status(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": "gateway.unused"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _flags(*flags: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def _said(why: str) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": MISS_HEADER, "string_match": {"exact": why}}}}


def _both(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": list(filters)}}


def _mapper(which: dict[str, Any], problem: Problem) -> dict[str, Any]:
    return {
        "filter": which,
        "status_code": problem.status,
        "headers_to_add": problem.headers(),
        "body_format_override": {
            "text_format_source": {"inline_string": problem.body()},
            "content_type": "application/problem+json",
        },
    }


def _note_route() -> dict[str, Any]:
    """Return the filter that keeps the name by which the app was found, for the log."""
    rewrite = {"pattern": {"regex": ":[0-9]*$"}, "substitution": ""}
    note = {"metadata_namespace": _NOTES, "key": "route", "regex_value_rewrite": rewrite}
    return {
        "name": "note",
        "typed_config": typed(
            "envoy.extensions.filters.http.header_to_metadata.v3.Config",
            request_rules=[{"header": ROUTE_HEADER, "on_header_present": note}],
        ),
    }


def _access_log(path: str) -> dict[str, Any]:
    fields = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "route": f"%DYNAMIC_METADATA({_NOTES}:route)%",
        "method": "%REQ(:METHOD)%",
        "authority": "%REQ(:AUTHORITY)%",
        "path": "%REQ(:PATH)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "reason": "%RESP(X-APPSUPERVISOR-REASON)%",
        "flags": "%RESPONSE_FLAGS%",
        "duration_ms": "%DURATION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "upstream": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "traceparent": "%REQ(TRACEPARENT)%",
    }
    return {
        "name": "file",
        "typed_config": typed(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            path=path,
            log_format={"json_format": fields},
        ),
    }


def _quoted(text: str) -> str:
    """Return a text as JSON writes it, which is a Lua string too for what is plain ASCII."""
    return json.dumps(text, ensure_ascii=True)
