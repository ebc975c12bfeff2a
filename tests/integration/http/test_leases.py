"""Without a lease nothing of a CONSISTENT app leaves its node. Time is the test's own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from runtime_node.http.gate import Gate
from runtime_node.lease import Lease, LeaseUnlessAlone, ServingRight
from tests.eventually import eventually
from tests.integration.http.conftest import Site


class Held:
    """A lease, and the clock that it is counted by."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lease = Lease("life", lambda: self.now)
        self.renew()

    def renew(self, *, alone: bool = False) -> None:
        self.lease.renew(1, "life", self.now, 6.0, lambda: None, alone=alone)


class Slow:
    """An app that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go = threading.Event()
        self.calls = 0
        self.ended: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        self.asked.set()
        try:
            if scope["path"] == "/stream":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
            # On the loop of the front, not of the test.
            await eventually(self.go.is_set)
            if scope["path"] != "/stream":
                await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"secret"})
            self.ended.append("sent")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise


def leased(site: Site, held: Held, app: Any, app_id: str = "a", lease: ServingRight | None = None) -> Gate:
    gate = Gate(f"apps/{app_id}/instances/1", on_fault=site.told, lease=lease or held.lease)
    gate.open(app)
    site.router.set(app_id, [], gate)
    return gate


async def asked(site: Site, app: Slow, path: str = "/") -> asyncio.Task[bytes]:
    """Begin a request; return it once the app works on it."""
    connection = await site.connect()
    connection.send(f"GET {path} HTTP/1.1\r\nHost: a.localhost\r\nConnection: close\r\n\r\n".encode())
    answer = asyncio.create_task(connection.rest())
    await eventually(app.asked.is_set)
    return answer


async def test_a_request_without_a_lease_is_answered_503_and_not_shown_to_the_app(site: Site) -> None:
    held, app = Held(), Slow()
    app.go.set()
    leased(site, held, app)
    assert (await site.get("/")).body == b"secret"
    held.now += 6.0
    answer = await site.get("/")
    assert (answer.status, answer.headers["x-appsupervisor-reason"]) == (503, "LEASE_EXPIRED")
    assert answer.headers["retry-after"] == "2"
    assert app.calls == 1
    held.renew()
    assert (await site.get("/")).status == 200


async def test_on_a_node_that_is_alone_an_app_that_is_so_by_default_needs_none(site: Site) -> None:
    held, strict, spared = Held(), Slow(), Slow()
    strict.go.set()
    spared.go.set()
    leased(site, held, strict)
    leased(site, held, spared, "b", LeaseUnlessAlone(held.lease))
    held.now += 0.5
    held.renew(alone=True)
    held.now += 3600.0
    assert (await site.get("/")).headers["x-appsupervisor-reason"] == "LEASE_EXPIRED"
    assert (await site.get("/", host="b.localhost")).body == b"secret"
    held.renew()
    assert (await site.get("/", host="b.localhost")).status == 200
    held.now += 6.0
    answer = await site.get("/", host="b.localhost")
    assert (answer.status, answer.headers["x-appsupervisor-reason"]) == (503, "LEASE_EXPIRED")


async def test_not_a_byte_leaves_of_what_was_computed_until_after_the_lease(site: Site) -> None:
    held, app = Held(), Slow()
    leased(site, held, app)
    answer = await asked(site, app)
    held.now += 6.0
    app.go.set()
    data = await answer
    assert b"LEASE_EXPIRED" in data
    assert b"secret" not in data
    assert app.ended == ["cancelled"]
    assert site.faults == []


async def test_what_was_begun_under_one_lease_is_not_finished_under_the_next(site: Site) -> None:
    held, app = Held(), Slow()
    leased(site, held, app)
    answer = await asked(site, app)
    held.now += 60.0  # as after a stall, in which nobody looked
    held.renew()
    app.go.set()
    data = await answer
    assert b"LEASE_EXPIRED" in data
    assert b"secret" not in data


async def test_a_response_that_has_begun_is_cut_off(site: Site) -> None:
    held, app = Held(), Slow()
    leased(site, held, app)
    answer = await asked(site, app, "/stream")
    held.now += 6.0
    app.go.set()
    data = await answer
    assert data.startswith(b"HTTP/1.1 200")
    assert b"secret" not in data
    assert not data.endswith(b"0\r\n\r\n")  # the client sees that it is not whole


async def test_a_renewed_lease_ends_nothing(site: Site) -> None:
    held, app = Held(), Slow()
    leased(site, held, app)
    answer = await asked(site, app)
    for _ in range(10):
        held.now += 2.0
        held.renew()
    app.go.set()
    assert b"secret" in await answer


async def test_when_the_lease_has_run_out_what_is_under_way_is_ended_at_once(site: Site) -> None:
    held, app = Held(), Slow()
    gate = leased(site, held, app)
    answer = await asked(site, app)
    held.now += 6.0
    gate.lapse()
    assert b"LEASE_EXPIRED" in await answer
    assert app.ended == ["cancelled"]
    assert gate.figures().in_flight == 0


async def test_what_waits_for_a_start_is_answered_when_the_lease_has_run_out(site: Site) -> None:
    held, app = Held(), Slow()
    gate = leased(site, held, app)
    gate.hold(lambda: None)
    connection = await site.connect()
    connection.send(b"GET / HTTP/1.1\r\nHost: a.localhost\r\nConnection: close\r\n\r\n")
    await eventually(lambda: gate.figures().queued)
    held.now += 6.0
    gate.open(app)
    assert b"LEASE_EXPIRED" in await connection.rest()
    assert app.calls == 0


async def test_an_instance_that_has_left_the_node_answers_nobody_whatever_lease_is_held(site: Site) -> None:
    held, app = Held(), Slow()
    gate = leased(site, held, app)
    answer = await asked(site, app)
    gate.revoke()
    app.go.set()
    assert b"secret" not in await answer
    held.renew()
    assert (await site.get("/")).status == 503
    assert app.calls == 1


async def test_an_app_that_needs_no_lease_serves_on(site: Site) -> None:
    app = Slow()
    app.go.set()
    gate = site.app("a", app)
    gate.lapse()
    gate.revoke()
    assert (await site.get("/")).body == b"secret"


async def test_a_websocket_says_nothing_more_without_a_lease(site: Site) -> None:
    held, go = Held(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        await eventually(go.is_set)
        await send({"type": "websocket.send", "text": "secret"})

    leased(site, held, app)
    connection = await site.connect()
    connection.send(
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    data = await connection.reader.readuntil(b"hello")
    held.now += 6.0
    go.set()
    data += await connection.rest()
    assert data.startswith(b"HTTP/1.1 101")
    assert b"secret" not in data
