"""Rules of environments and nodes, as their protos' comments state them.

Ids and parents are checked by `names`; here are the fields beside them.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from appsupervisor.fleet.v1.fleet_pb2 import DatabaseServer, Environment, Node
from services.control_plane.rules.environment_defaults import default_violations
from services.rpc.errors import Violation
from services.spec.rules import extension_violations, template_violations
from services.spec.scalars import (
    MAX_DISPLAY_NAME,
    MAX_HOST,
    domain_violations,
    integer_violations,
    label_value_violations,
    label_violations,
    text_violations,
)

_MAX_INCARNATION = 64
_MAX_VERSION = 128
_MAX_MODULES = 2_000
_MAX_MODULE = 100
_MAX_URL = 2048
_MAX_TEMPLATES = 64
_POSTGRESQL_URL = re.compile(r"postgres(?:ql)?(?:\+[a-z0-9]+)?://[!-~]+")
_MAX_INSTANCES = 2**31 - 1
_MAX_MEMORY = 2**63 - 1
# Wider than DNS: names of containers and hosts files may have underscores.
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_PORT = re.compile("0{0,9}[0-9]{1,5}")
_INCARNATION = re.compile(rf"[!-~]{{1,{_MAX_INCARNATION}}}")
_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def environment_violations(environment: Environment, prefix: str = "environment") -> list[Violation]:
    """Return everything that is wrong with what a caller set of an environment."""
    return [
        *text_violations(f"{prefix}.display_name", environment.display_name, MAX_DISPLAY_NAME),
        *label_violations(f"{prefix}.labels", environment.labels),
        *default_violations(environment.app_defaults, f"{prefix}.app_defaults"),
    ]


def database_server_violations(server: DatabaseServer, prefix: str = "database_server") -> list[Violation]:
    """Return everything that is wrong with what a caller set of a database server."""
    found = [
        *text_violations(f"{prefix}.display_name", server.display_name, MAX_DISPLAY_NAME),
        *label_violations(f"{prefix}.labels", server.labels),
        *integer_violations(f"{prefix}.max_apps", server.max_apps, 0, 1_000_000),
        *integer_violations(f"{prefix}.app_connections", server.app_connections, 0, 1_000),
        *integer_violations(f"{prefix}.spare_databases", server.spare_databases, 0, 100),
    ]
    found += extension_violations(f"{prefix}.allowed_extensions", server.allowed_extensions, 64)
    found += _templates_violations(f"{prefix}.templates", server)
    if server.app_address:
        found += _address_violations(f"{prefix}.app_address", server.app_address)
    return found + _admin_url_violations(f"{prefix}.admin_url", server.admin_url)


def _templates_violations(field: str, server: DatabaseServer) -> list[Violation]:
    found = []
    if len(server.templates) > _MAX_TEMPLATES:
        found.append(Violation(field, f"must have at most {_MAX_TEMPLATES} entries"))
    for index, name in enumerate(server.templates[:_MAX_TEMPLATES]):
        path = f"{field}[{index}]"
        found += template_violations(path, name)
        if name in server.templates[:index]:
            found.append(Violation(path, "stands more than once"))
        if name == urlsplit(server.admin_url).path.strip("/"):
            found.append(Violation(path, "must not be the database of admin_url: apps' schemas are in it"))
    return found


def _admin_url_violations(field: str, url: str) -> list[Violation]:
    # No rule repeats what it is about: there is a password in it.
    if not url:
        return [Violation(field, "is required, as postgresql://user:password@host:port/database")]
    if len(url) > _MAX_URL:
        return [Violation(field, f"must be at most {_MAX_URL:,} characters")]
    if not _POSTGRESQL_URL.fullmatch(url):
        return [Violation(field, "must be postgresql://user:password@host:port/database, in ASCII")]
    return []


def node_violations(node: Node, prefix: str = "node") -> list[Violation]:
    """Return everything that is wrong with what a node tells of itself."""
    found = [
        *_address_violations(f"{prefix}.address", node.address),
        *_address_violations(f"{prefix}.http_address", node.http_address),
        *label_violations(f"{prefix}.labels", node.labels),
        *label_value_violations(f"{prefix}.zone", node.zone),
        *text_violations(f"{prefix}.version", node.version, _MAX_VERSION),
        *integer_violations(f"{prefix}.max_instances", node.max_instances, 0, _MAX_INSTANCES),
        *integer_violations(f"{prefix}.memory_bytes", node.memory_bytes, 0, _MAX_MEMORY),
    ]
    if len(node.modules) > _MAX_MODULES:
        found.append(Violation(f"{prefix}.modules", f"must be at most {_MAX_MODULES:,}"))
    for index, module in enumerate(node.modules[:_MAX_MODULES]):
        if not module.isidentifier() or len(module) > _MAX_MODULE:
            rule = f"must be the name of a module, of at most {_MAX_MODULE} characters"
            found.append(Violation(f"{prefix}.modules[{index}]", rule))
    if node.base_domain and node.base_domain != "localhost":
        found += domain_violations(f"{prefix}.base_domain", node.base_domain)
    if node.uid and not _UUID.fullmatch(node.uid):
        found.append(Violation(f"{prefix}.uid", "must be a UUID in lower case, or empty"))
    if not _INCARNATION.fullmatch(node.incarnation):
        rule = "is required" if not node.incarnation else "must be 1 to 64 visible ASCII characters"
        found.append(Violation(f"{prefix}.incarnation", rule))
    return found


def _address_violations(field: str, address: str) -> list[Violation]:
    if not address:
        return [Violation(field, "is required, as host:port")]
    host, colon, port = address.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        return [Violation(field, "must be host:port, the port from 1 to 65,535")]
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        if bracketed or len(host) > MAX_HOST or not _HOST.fullmatch(host):
            return [Violation(field, "must have a host name or an IP address before the port")]
        return []
    if bracketed != (ip.version == 6):
        return [Violation(field, "must have an IPv6 address, and nothing else, in brackets")]
    if ip.is_unspecified:
        return [Violation(field, "must be an address that others can call; this one only listens")]
    return []
