"""Forwarded requests that fail, meet another move or are too many: each has its answer, and an end."""

import asyncio

import pytest

from runtime_node.forwarding import Carrier, Forwarder, ForwardGate, Target
from runtime_node.forwarding.carrier import CarrierLimits
from runtime_node.http import GateLimits
from tests.eventually import eventually


@pytest.mark.parametrize("begun", [False, True])
async def test_a_node_that_breaks_off_is_told_from_an_answer(make_moved, begun):
    async def app(scope, receive, send):
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        for connection in list(moved.home.front._shared.connections):
            connection.transport.abort()

    moved = await make_moved(app)
    connection = await moved.former.connect()
    connection.send(b"POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 0\r\n\r\n")
    if begun:
        assert b"200 OK" in (data := await connection.rest())
        assert b"part" in data
    else:
        answer = await connection.answer()
        assert (answer.status, answer.reason) == (502, "FORWARD_BROKEN_OFF")
        assert "retry-after" not in answer.headers
    assert moved.forwarder.failed == 1


async def test_a_connection_that_was_closed_meanwhile_is_replaced(moved):
    assert (await moved.get()).status == 200
    for connection in list(moved.home.front._shared.connections):
        moved.home.front.loop.call_soon_threadsafe(connection.transport.abort)
    assert (await moved.get()).status == 200
    assert moved.forwarder.failed == 0


async def test_a_node_that_cannot_be_reached_is_a_503_with_its_reason(make_moved, site):
    address = site.front.address
    await site.front.stop(0)
    moved = await make_moved(target=Target(*address))
    answer = await moved.get()
    assert (answer.status, answer.reason) == (503, "FORWARD_FAILED")
    assert answer.headers["retry-after"] == "1"
    assert str(address[1]) not in answer.body.decode()
    assert moved.forwarder.failed == 1


async def test_what_cannot_be_forwarded_waits_for_an_instance_that_is_coming(make_moved, site):
    address = site.front.address
    await site.front.stop(0)
    moved = await make_moved(target=Target(*address))
    moved.forwarder.returning = True
    asking = asyncio.create_task(moved.get())
    await eventually(lambda: moved.gate.figures().queued == 1)
    own = moved.former.app("a")
    moved.gate.forward(own)
    assert (await asking).status == 200


async def test_a_request_is_forwarded_once(make_moved):
    moved = await make_moved()
    # There it is forwarded, too: to where it came from.
    again = Forwarder(
        Carrier(moved.home.front.loop, "environments/default/nodes/node-2"),
        "a",
        Target(*moved.former.front.address),
    )
    back = ForwardGate("")
    back.open(again)
    moved.home.router.set("a", [], back)
    answer = await moved.get()
    assert (answer.status, answer.reason) == (503, "APP_MOVED")
    assert answer.headers["retry-after"] == "1"
    # Tried some times, for the app might have moved on.
    assert (again.forwarded, again.failed) == (0, 4)
    assert (moved.forwarder.forwarded, moved.home.front.figures().refusals) == (1, {"APP_MOVED": 4})
    assert (await moved.get("/", "X-AppSupervisor-Forwarded: me")).reason == "APP_MOVED"


async def test_a_request_that_meets_a_move_is_tried_where_the_app_has_gone(make_moved, make_site):
    moved = await make_moved()
    third = await make_site()
    third.app("a")
    # The app has left the node that is forwarded to, and this one is told only now.
    back = ForwardGate("")
    back.open(Forwarder(moved.carrier, "a", Target("127.0.0.1", 9)))
    home = moved.forwarder.target
    moved.home.router.set("a", [], back)
    carry = moved.carrier.connect

    async def connect(target, *, fresh):
        link = await carry(target, fresh=fresh)
        if target == home:
            moved.forwarder.target = Target(*third.front.address)
        return link

    moved.carrier.connect = connect
    assert (await moved.get("/there")).status == 200
    assert (moved.forwarder.forwarded, moved.forwarder.failed) == (1, 0)


async def test_the_other_nodes_own_answers_pass_with_their_reason_but_no_app_can_forge_one(make_moved):
    async def forging(scope, receive, send):
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"x-appsupervisor-reason", b"X")]}
        )
        await send({"type": "http.response.body"})

    moved = await make_moved(forging)
    assert (await moved.get()).reason == ""
    moved.home.router.gate_of("a").close("APP_CRASHED", 3)
    answer = await moved.get()
    assert (answer.status, answer.reason, answer.headers["retry-after"]) == (503, "APP_CRASHED", "3")


async def test_an_apps_forwarded_requests_are_bounded_and_so_are_all_together(make_moved):
    inside = 0
    release = []

    async def app(scope, receive, send):
        nonlocal inside
        inside += 1
        over = asyncio.Event()
        release.append((asyncio.get_running_loop(), over))
        await over.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    limits = GateLimits(max_concurrent_requests=2, max_queued_requests=1)
    moved = await make_moved(app, limits=limits, carrier_limits=CarrierLimits(max_requests=3))
    other = ForwardGate("")
    other.open(Forwarder(moved.carrier, "b", moved.forwarder.target))
    moved.home.app("b", app)
    moved.former.router.set("b", [], other)
    asking = [asyncio.create_task(moved.get()) for _ in range(2)]
    await eventually(lambda: inside == 2)
    asking.append(asyncio.create_task(moved.get()))
    await eventually(lambda: moved.gate.figures().queued == 1)
    refused = await moved.get()
    assert (refused.status, refused.reason, refused.headers["retry-after"]) == (503, "SERVER_BUSY", "1")
    asking.append(asyncio.create_task(moved.get(host="b.localhost")))
    await eventually(lambda: inside == 3)
    refused = await moved.get(host="b.localhost")
    assert (refused.status, refused.reason, refused.headers["retry-after"]) == (503, "SERVER_BUSY", "1")
    assert moved.carrier.requests == 3

    def let_go():
        while release:
            front, over = release.pop()
            front.call_soon_threadsafe(over.set)
        return all(task.done() for task in asking)

    await eventually(let_go)
    assert [task.result().status for task in asking] == [200] * 4
