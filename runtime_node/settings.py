"""The node's settings, read in one place: flags, each also an environment variable `APPSUPERVISOR_…`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime_node.flags import (
    METRICS,
    PREFIX,
    Address,
    Flags,
    address,
    advertised,
    control_planes,
    count,
    directory,
    domain,
    identifier,
    label,
    level,
    log_format,
    network,
    preload,
    zone,
)

__all__ = ("METRICS", "Address", "NodeSettings", "read_settings")


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Everything a node is told at its start."""

    listen: Address
    http_listen: Address
    control_plane: str
    """`host:port`, several separated by commas; empty for a node that stands alone."""
    environment: str
    node: str
    data_dir: Path
    app_dirs: tuple[Path, ...]
    labels: Mapping[str, str]
    zone: str
    """What fails together with the node; empty for none."""
    advertise: Address | None
    """Where others reach the node's gRPC, and at this host its HTTP; port 0, or None, where it listens."""
    advertise_http: Address | None
    """The same for its HTTP alone."""
    base_domain: str
    max_instances: int
    memory_budget_bytes: int | None
    concurrent_starts: int
    preload: tuple[str, ...] | None
    """Modules that a process of the tier PROCESS finds loaded; None for those of the usual frameworks."""
    shutdown_timeout: float
    """Seconds for draining every instance at the node's end."""
    trusted_proxies: tuple[str, ...]
    path_hosts: tuple[str, ...]
    """Host names under which apps are found by path and X-App, beside loopback names and addresses."""
    hosts_only: bool
    """Whether apps are found by host name alone."""
    log_level: str
    log_format: str
    metrics_listen: Address | None
    metrics_port_may_vary: bool
    """Whether any port does for metrics where that one is taken: nobody asked for it."""
    echo_app_logs: bool
    """Whether what apps log goes to the node's stderr too."""

    @property
    def node_name(self) -> str:
        """Resource name of the node."""
        return f"environments/{self.environment}/nodes/{self.node}"


def read_settings(
    arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> NodeSettings:
    """Read flags and environment; flags win. Ends the process with a clear sentence on a mistake."""
    variables = os.environ if environ is None else environ
    parser = argparse.ArgumentParser(
        prog="python -m runtime_node",
        description="Hosts many web apps in one process group and reports on them over gRPC.",
        epilog=f"Each flag is also an environment variable: --http-listen is {PREFIX}HTTP_LISTEN. "
        "Lists there are separated by commas, --app-dir's by the system's path separator. "
        "Example: appsupervisor node --control-plane 127.0.0.1:7400 --node node-2 --data-dir data/node-2 "
        "--listen 127.0.0.1:7402 --http-listen 127.0.0.1:8081",
        allow_abbrev=False,
    )
    add = Flags(parser, variables)
    _add_place(add)
    _add_bounds(add)
    _add_front(add)
    _add_watching(add)
    return _settings(parser.parse_args(arguments))


def _add_place(add: Flags) -> None:
    """Add what says where the node is, and what it has to work with."""
    add("--listen", address, "127.0.0.1:7401", "where the gRPC API listens; port 0 takes a free one")
    add("--http-listen", address, "127.0.0.1:8080", "where the apps' HTTP listens; port 0 takes a free one")
    add(
        "--control-plane",
        control_planes,
        "",
        "host:port of the control plane to join, or several of one catalog's, separated by commas; without "
        "it the node stands alone",
    )
    add("--environment", identifier, "default", "environment that the node belongs to")
    add("--node", identifier, "node-1", "name of the node, unique in its environment")
    add("--data-dir", Path, "data/node-1", "directory that holds the apps' data; of this node alone")
    add.many("--app-dir", directory, os.pathsep, "directory to load apps' code from; may be repeated")
    add.many("--label", label, ",", "label of the node, K=V, to place apps by; may be repeated")
    add("--zone", zone, "", "what fails together with the node, as a rack: copies are spread over zones")
    add(
        "--advertise",
        advertised,
        "",
        "HOST or HOST:PORT at which others reach this node, if not where it listens",
    )
    add(
        "--advertise-http",
        advertised,
        "",
        "HOST or HOST:PORT at which others reach its HTTP, if neither where it listens nor at that port of "
        "--advertise's host, as behind a mapping of ports",
    )
    add("--base-domain", domain, "localhost", "domain under which each app answers as {app}.{base-domain}")


def _add_bounds(add: Flags) -> None:
    """Add how much the node takes at most."""
    add("--max-instances", count, "10000", "the most instances the node accepts")
    add(
        "--memory-budget-bytes", int, "0",
        "memory of the node: beyond it idle ON_REQUEST apps go dormant, and the memory limits of the apps "
        "placed on it stay below it; 0 for no budget",
    )  # fmt: skip
    add("--concurrent-starts", count, "16", "how many apps start at the same time")
    add(
        "--preload", preload, "usual",
        "modules that an app of the tier PROCESS finds loaded, and shares with the others: usual (FastAPI, "
        "SQLModel and what they need, where installed), none, or names separated by commas",
    )  # fmt: skip
    add("--shutdown-timeout", float, "30", "seconds for draining all apps at the node's end")


def _add_front(add: Flags) -> None:
    """Add how requests find apps, and who is trusted to say from whom they are."""
    add.many(
        "--trusted-proxy", network, ",",
        "address or network of a proxy: its Forwarded and X-Forwarded-* reach the apps, from others they are "
        "dropped, and its connections count as those of many clients; may be repeated",
    )  # fmt: skip
    add.many(
        "--path-host", domain, ",",
        "host name under which apps are also found by path (/apps/{app}/) and by X-App, as they are under "
        "loopback names, IP addresses and the base domain; may be repeated",
    )  # fmt: skip
    add.switch("--hosts-only", "find apps by their own host names alone, never by path or X-App")


def _add_watching(add: Flags) -> None:
    """Add how the node is watched: its figures and logs."""
    add.metrics("--metrics-listen")
    add.switch("--echo-app-logs", "write what apps log to the node's own log too")
    add("--log-level", level, "INFO", "least level that is logged: DEBUG, INFO, WARNING or ERROR")
    add("--log-format", log_format, "text", "how log lines are written: text or json")


def _settings(parsed: argparse.Namespace) -> NodeSettings:
    return NodeSettings(
        listen=parsed.listen,
        http_listen=parsed.http_listen,
        control_plane=parsed.control_plane,
        environment=parsed.environment,
        node=parsed.node,
        data_dir=parsed.data_dir,
        app_dirs=tuple(parsed.app_dir),
        labels=dict(parsed.label),
        zone=parsed.zone,
        advertise=parsed.advertise,
        advertise_http=parsed.advertise_http,
        base_domain=parsed.base_domain,
        max_instances=parsed.max_instances,
        memory_budget_bytes=parsed.memory_budget_bytes or None,
        concurrent_starts=parsed.concurrent_starts,
        preload=parsed.preload,
        shutdown_timeout=parsed.shutdown_timeout,
        trusted_proxies=tuple(parsed.trusted_proxy),
        path_hosts=tuple(parsed.path_host),
        hosts_only=parsed.hosts_only,
        log_level=parsed.log_level,
        log_format=parsed.log_format,
        metrics_listen=parsed.metrics_listen,
        # The default itself: who asks for the same port gets that or none.
        metrics_port_may_vary=parsed.metrics_listen is METRICS,
        echo_app_logs=parsed.echo_app_logs,
    )
