"""Who opens calls and resets them without end (HTTP/2 rapid reset) loses its connection; nobody else does."""

import asyncio
import contextlib
import logging
import socket
import threading
from typing import Any

import grpc
import pytest

from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub, add_FleetServicer_to_server
from services.rpc.pipeline.admission import Admission, Bounds
from services.rpc.pipeline.pipeline import Pipeline
from services.rpc.reset_floods import Connection, ResetFloods
from services.rpc.server import RpcServer, Service
from tests.eventually import WITHIN
from tests.integration.rpc.conftest import SomeFleet

HEADERS, RST_STREAM, SETTINGS = 1, 3, 4
ACK, END_HEADERS = 1, 4
CANCEL = (8).to_bytes(4, "big")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def field(name: bytes, value: bytes) -> bytes:
    """Return a header as HPACK has it without a table (RFC 7541 §6.2.2)."""
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value


HEAD = b"".join(
    field(name, value)
    for name, value in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/appsupervisor.fleet.v1.Fleet/GetNode"),
        (b":authority", b"test"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    )
)  # fmt: skip


class Flood:
    """A client that opens and resets calls as fast as they are taken, until its connection ends."""

    def __init__(self, port: int) -> None:
        self.ended = threading.Event()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)
        )
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._write)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(1 << 16):
                pass
        self.ended.set()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            for first in range(1, 1 << 30, 400):
                self._socket.sendall(
                    b"".join(
                        frame(HEADERS, END_HEADERS, stream, HEAD) + frame(RST_STREAM, 0, stream, CANCEL)
                        for stream in range(first, first + 400, 2)
                    )
                )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WITHIN)
        self._socket.close()


async def test_the_connections_of_a_flood_end_and_no_other_of_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service("appsupervisor.fleet.v1.Fleet", add_FleetServicer_to_server, SomeFleet())
    # Far fewer than in earnest, so that a machine with much else to do gets beyond it too.
    server = RpcServer([service], pipeline=Pipeline(admission=Admission(Bounds(resets_per_second=50))))
    port = await server.start("127.0.0.1:0")
    floods: list[Flood] = []
    with caplog.at_level(logging.WARNING):
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub: Any = FleetStub(channel)
                states: list[grpc.ChannelConnectivity] = []
                await stub.GetNode(fleet_pb2.GetNodeRequest(name="before"))
                floods = [Flood(port) for _ in range(3)]
                while not all(flood.ended.is_set() for flood in floods):
                    answer = await stub.GetNode(fleet_pb2.GetNodeRequest(name="meanwhile"), timeout=30)
                    assert answer.name == "meanwhile"
                    states.append(channel.get_state())
                    await asyncio.sleep(0)
                assert set(states) == {grpc.ChannelConnectivity.READY}
        finally:
            for flood in floods:
                await asyncio.to_thread(flood.close)
            await server.stop(0)
    told = [record for record in caplog.records if getattr(record, "action", "") == "rpc.reset_flood"]
    assert sum(record.__dict__["connections"] for record in told) == 3


Look = tuple[int, dict[int, int]]
"""Failed calls of all so far, and resets of each connection so far, by port."""


def looks(*seconds: Look, limit: int = 100, answered: dict[int, int] | None = None) -> list[list[int]]:
    """Return the ports found at each look; even ones are of one host, odd ones of another.

    `answered` is how often a connection's calls were answered for each that was reset.
    """
    now: Look = (0, {})
    times = answered or {}
    floods = ResetFloods(
        lambda: now[0],
        lambda: {
            port: Connection((f"192.0.2.{port % 2}", port), reset, reset * times.get(port, 0))
            for port, reset in now[1].items()
        },
        limit=limit,
    )
    found: list[list[int]] = []
    for now in seconds:  # noqa: B007 - the callables look at it
        found += [[port for _, port in floods.look()]]
    return found


def test_who_resets_beyond_the_limit_in_two_seconds_in_a_row_is_found() -> None:
    assert looks((500, {1: 400, 2: 10}), (1000, {1: 800, 2: 20})) == [[], [1]]


def test_what_an_address_resets_counts_on_all_its_connections_and_for_nobody_else() -> None:
    assert looks((500, {1: 60, 3: 60, 2: 60}), (1000, {1: 120, 3: 120, 2: 120})) == [[], [1, 3]]


def test_a_connection_of_the_address_that_is_answered_stays() -> None:
    rows = (500, {1: 400, 3: 2}), (1000, {1: 800, 3: 4})
    assert looks(*rows, answered={3: 5}) == [[], [1]]


def test_who_is_answered_more_often_is_only_busy() -> None:
    assert looks((500, {1: 400}), (1000, {1: 800}), answered={1: 2}) == [[], []]


def test_one_burst_is_no_flood() -> None:
    assert looks((500, {1: 400}), (550, {1: 440}), (1000, {1: 800}), (1020, {1: 810})) == [[], [], [], []]


def test_many_calls_that_fail_and_are_answered_are_no_flood() -> None:
    assert looks((5_000, {1: 3}), (10_000, {1: 7}), (15_000, {1: 9})) == [[], [], []]


def test_who_comes_again_on_another_connection_is_found_each_second() -> None:
    assert looks((500, {1: 400}), (1000, {3: 400}), (1500, {5: 400})) == [[], [3], [5]]
