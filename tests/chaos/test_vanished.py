"""A client's host vanishes: no packet of it comes any more, not even a reset. Nothing is kept for it."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from pathlib import Path

import pytest

from tests.chaos.fleet import GRPC_PORT, HTTP_PORT, LONE, Fleet
from tests.e2e.stack import Process, eventually

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]

HOST = LONE[1]

CLIENT = """
import socket, sys, threading
import grpc
from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
plane, node = sys.argv[1:]
host, _, port = node.rpartition(":")
kept = [socket.create_connection((host, int(port))) for _ in range(4)]
kept[1].sendall(b"GET / HTTP/1.1\\r\\nHost: local.localhost\\r\\n\\r\\n")
kept[2].sendall(b"GET / HTTP/1.1\\r\\nHost: local.localh")
kept[3].sendall(b"POST /?n=1 HTTP/1.1\\r\\nHost: local.localhost\\r\\nContent-Length: 100\\r\\n\\r\\nhalf")
for message in AppCatalogStub(grpc.insecure_channel(plane)).WatchApps(catalog.WatchAppsRequest()):
    print("watches", flush=True)
"""
"""Connections without a request, after one, with half a head, with half a body; and a watch."""


def connections(process: Process, port: int, client: str) -> int:
    """Return how many open connections of a client a program's host has at a port."""
    address = f"{struct.unpack('<I', socket.inet_aton(client))[0]:08X}"
    # gRPC listens at sockets of IPv6 for IPv4 as well.
    lines = [
        line.split()
        for family in ("tcp", "tcp6")
        for line in Path(f"/proc/{process.pid}/net/{family}").read_text().splitlines()[1:]
    ]
    return sum(
        local.endswith(f":{port:04X}") and remote.partition(":")[0].endswith(address) and state == "01"
        for _, local, remote, state, *_ in lines
    )


def test_what_a_vanished_host_had_open_is_closed(fleet: Fleet, tmp_path: Path) -> None:
    home, leader = fleet.settles("local"), fleet.leader()
    client = Process(
        "vanishing",
        ["-c", CLIENT, fleet.at(leader), fleet.at(home, HTTP_PORT)],
        tmp_path / "client.log",
        runs=(*fleet.network.within(HOST), sys.executable),
    )
    address = fleet.network.addresses[HOST]
    ends = ((fleet.planes[leader], GRPC_PORT), (fleet.nodes[home], HTTP_PORT))
    with contextlib.ExitStack() as resources:
        resources.callback(client.clean_up)
        client.start()
        eventually(lambda: "watches" in client.text(), "it is connected")
        assert all(connections(*end, address) for end in ends)
        resources.enter_context(fleet.network.cut(HOST, leader, home))
        client.kill()
        for end in ends:
            eventually(lambda end=end: connections(*end, address) == 0, f"{end[0].name} has closed them")
    fleet.settles("local")
