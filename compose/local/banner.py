"""What the user sees once the local stack is up: where everything is, and commands that work as printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from compose.local import demo
from compose.local.addresses import Addresses

WIKI = '{"app_id": "wiki", "app": {"entrypoint": "notes:create_app"}, "request_id": "try"}'


def banner(
    addresses: Addresses, data_dir: Path, states: Sequence[demo.Settled], remarks: Sequence[str] = ()
) -> str:
    """Return what the user may do now."""
    lines = ["", "  AppSupervisor is up. The apps:"]
    for one, settled in zip(demo.DEMOS, states, strict=True):
        lines.append(f"    http://{one.id}.localhost:{settled.port}/   {settled.words}")
    lines += [*_programs(addresses, data_dir), *(f"  {sentence}" for sentence in remarks)]
    lines += ["  Try in another terminal:", *(f"    {command}" for command in commands(addresses))]
    return "\n".join([*lines, "  Ctrl-C stops everything.", ""])


def _programs(addresses: Addresses, data_dir: Path) -> list[str]:
    if len(addresses.nodes) == 1:
        (node,) = addresses.nodes
        lines = [f"  Control plane {addresses.control_plane}, node {node.grpc}, data in {data_dir}"]
        if node.metrics:
            lines.append(f"  Metrics {_metrics(addresses.metrics)}, of the node {_metrics(node.metrics)}")
        return lines + _beside(addresses)
    metrics = f", metrics {_metrics(addresses.metrics)}" if addresses.metrics else ""
    lines = [f"  Control plane {addresses.control_plane}{metrics}, data in {data_dir}"]
    for node in addresses.nodes:
        metrics = f", metrics {_metrics(node.metrics)}" if node.metrics else ""
        lines.append(
            f"    {node.id}: apps at http://{{app}}.localhost:{node.http_port}/, gRPC {node.grpc}{metrics}"
        )
    return lines + _beside(addresses)


def _beside(addresses: Addresses) -> list[str]:
    lines = []
    if addresses.postgres:
        lines.append(
            f"  PostgreSQL {addresses.postgres}: the catalog is there, and apps' own as databaseServers/local"
        )
    if addresses.gateway:
        port = addresses.gateway.rpartition(":")[2]
        lines.append(f"  Gateway: every app, whatever node it is on, at http://{{app}}.localhost:{port}/")
    return lines


def commands(addresses: Addresses) -> list[str]:
    """Return lines for a shell, each of which works as it is."""
    control_plane = addresses.control_plane

    def call(method: str, request: str) -> str:
        return (
            f"grpcurl -plaintext -d '{request}' {control_plane} appsupervisor.catalog.v1.AppCatalog/{method}"
        )

    wiki = f"http://wiki.localhost:{addresses.nodes[0].http_port}/"
    if addresses.gateway:
        wiki = f"http://wiki.localhost:{addresses.gateway.rpartition(':')[2]}/"
    elif len(addresses.nodes) > 1:  # which node it gets is the control plane's to say
        command_line = Path(sys.executable).with_name("appsupervisor")
        shown = (
            command_line.relative_to(Path.cwd()) if command_line.is_relative_to(Path.cwd()) else command_line
        )
        wiki = f'"$({shown} --address {control_plane} --jmespath uri get wiki)"'
    return [
        f"grpcurl -plaintext {control_plane} list",
        call("ListApps", '{"filter": "state = RUNNING"}'),
        call("CreateApp", WIKI),
        f"curl {wiki}notes",
        call("StopApp", '{"name": "apps/wiki"}'),
        call("ListAppEvents", '{"parent": "apps/wiki"}'),
    ]


def _metrics(address: str) -> str:
    return f"http://{address}/metrics"
