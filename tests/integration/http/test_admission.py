"""A gate in front of real requests: limits, holding, draining, faults, figures."""

import asyncio
import threading
import time

import pytest

from runtime_node.http import CURRENT_INSTANCE, Gate, GateLimits, RequestInterrupted
from services.rpc.errors import SupervisorError
from tests.eventually import WITHIN

HOST = b"Host: a.localhost\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


async def answer(send, status=200, body=b"done"):
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Blocker:
    """An app whose requests wait until they are released; its `began` counts those that reached it."""

    def __init__(self):
        self.began = 0
        self.cancelled = 0
        self.order = []
        self.release = asyncio.Event()
        self.loop = None

    async def __call__(self, scope, receive, send):
        self.began += 1
        self.order.append(scope["path"])
        if self.loop is None:
            self.loop = asyncio.get_running_loop()
            self.release = asyncio.Event()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await answer(send)

    def let_go(self):
        self.loop.call_soon_threadsafe(self.release.set)


async def test_beyond_the_concurrency_limit_requests_wait_and_beyond_the_queue_they_are_shed(
    site, wait_until
):
    app = Blocker()
    gate = site.app("a", app, GateLimits(max_concurrent_requests=2, max_queued_requests=3))
    clients = [await site.connect() for _ in range(6)]
    for number, client in enumerate(clients[:5]):
        client.send(GET.replace(b"/ ", b"/%d " % number))
        await wait_until(lambda n=number: gate.figures().in_flight + gate.figures().queued == n + 1)
    assert (gate.figures().in_flight, gate.figures().queued, app.began) == (2, 3, 2)
    clients[5].send(GET)
    shed = await clients[5].answer()
    assert (shed.status, shed.reason, shed.headers["retry-after"]) == (503, "SERVER_BUSY", "1")
    assert "connection" not in shed.headers
    app.let_go()
    assert [(await client.answer()).status for client in clients[:5]] == [200] * 5
    assert app.order == ["/0", "/1", "/2", "/3", "/4"]
    figures = gate.figures()
    assert (figures.requests, figures.shed, figures.in_flight, figures.queued) == (5, 1, 0, 0)


async def test_a_request_beyond_its_time_is_answered_504_and_cancelled(site, wait_until):
    app = Blocker()
    gate = site.app("a", app, GateLimits(request_timeout=1.0, max_concurrent_requests=1))
    served, queued = await site.connect(), await site.connect()
    served.send(GET)
    await wait_until(lambda: app.began == 1)
    queued.send(GET)
    for client in (served, queued):
        late = await client.answer()
        assert (late.status, late.reason) == (504, "REQUEST_TIMEOUT")
    await wait_until(lambda: app.cancelled == app.began)
    figures = gate.figures()
    assert (figures.timeouts, figures.in_flight, figures.queued) == (2, 0, 0)
    assert site.faults == []


async def test_a_response_that_has_begun_is_cut_by_closing(site, wait_until):
    async def drip(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"drip", "more_body": True})
            await asyncio.sleep(0.02)

    gate = site.app("a", drip, GateLimits(request_timeout=1.0))
    client = await site.connect()
    client.send(GET)
    data = await client.rest()
    assert data.startswith(b"HTTP/1.1 200")
    assert not data.endswith(b"0\r\n\r\n")
    await wait_until(lambda: gate.figures().in_flight == 0)
    assert (gate.figures().timeouts, gate.figures().errors) == (1, 1)


async def test_a_client_that_left_does_not_free_its_request_from_the_time_limit(site, wait_until):
    app = Blocker()
    gate = site.app("a", app, GateLimits(request_timeout=0.4))
    client = await site.connect()
    client.send(GET)
    await wait_until(lambda: app.began == 1)
    client.writer.transport.abort()
    await wait_until(lambda: app.cancelled == 1)
    await wait_until(lambda: gate.figures().in_flight == 0)


async def test_a_client_that_left_the_queue_takes_no_place(site, wait_until):
    app = Blocker()
    gate = site.app("a", app, GateLimits(max_concurrent_requests=1))
    first, second = await site.connect(), await site.connect()
    first.send(GET)
    await wait_until(lambda: app.began == 1)
    second.send(GET)
    await wait_until(lambda: gate.figures().queued == 1)
    second.writer.transport.abort()
    await wait_until(lambda: gate.figures().queued == 0)
    app.let_go()
    assert (await first.answer()).status == 200
    assert app.began == 1


async def test_bodies_are_bounded_by_their_length_and_while_they_stream(site):
    async def read_all(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await answer(send)

    gate = site.app("a", read_all, GateLimits(max_request_body_bytes=1000))
    head = b"POST / HTTP/1.1\r\n" + HOST
    [large] = await site.raw(head + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
    assert (large.status, large.reason) == (413, "REQUEST_BODY_TOO_LARGE")
    [fits] = await site.raw(head + b"Content-Length: 1000\r\nConnection: close\r\n\r\n" + b"x" * 1000)
    assert fits.status == 200
    client = await site.connect()
    client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1f4\r\n" + b"x" * 500 + b"\r\n")
    client.send(b"1f5\r\n" + b"x" * 501 + b"\r\n")
    assert (await client.answer()).status == 413
    assert gate.figures().too_large == 2
    assert gate.figures().errors == 0


@pytest.mark.parametrize("burst", [1, 60])
async def test_a_dormant_app_is_wanted_once_and_serves_the_whole_burst_in_order(site, wait_until, burst):
    order, wanted = [], []

    async def app(scope, receive, send):
        order.append(scope["path"])
        await answer(send)

    gate = site.app("a", None, GateLimits(max_concurrent_requests=8))
    gate.hold(lambda: wanted.append(1))
    clients = [await site.connect() for _ in range(burst)]
    for number, client in enumerate(clients):
        client.send(GET.replace(b"/ ", b"/%d " % number))
        await wait_until(lambda n=number: gate.figures().queued == n + 1)
    assert wanted == [1]
    gate.open(app)
    assert [(await client.answer()).status for client in clients] == [200] * burst
    assert order == [f"/{number}" for number in range(burst)]
    assert wanted == [1]


async def test_a_new_hold_with_requests_waiting_wants_the_app_again(site, wait_until):
    wanted = []
    gate = site.app("a", None)
    gate.hold(lambda: wanted.append("first"))
    client = await site.connect()
    client.send(GET)
    await wait_until(lambda: wanted == ["first"])
    gate.hold(lambda: wanted.append("second"))
    await wait_until(lambda: wanted == ["first", "second"])
    gate.close("APP_START_TIMEOUT", 7)
    refused = await client.answer()
    assert (refused.status, refused.reason, refused.headers["retry-after"]) == (503, "APP_START_TIMEOUT", "7")


async def test_a_held_request_that_is_never_served_ends_with_504(site):
    gate = site.app("a", None, GateLimits(request_timeout=0.2))
    gate.hold(lambda: None)
    late = await site.get("/")
    assert late.status == 504
    assert gate.figures().timeouts == 1


async def test_an_on_wanted_that_raises_harms_nobody(site):
    gate = site.app("a", None, GateLimits(request_timeout=0.2))
    gate.hold(lambda: 1 / 0)
    assert (await site.get("/")).status == 504
    site.app("b")
    assert (await site.get("/", host="b.localhost")).status == 200


async def test_drain_waits_for_what_is_served(site, wait_until):
    app = Blocker()
    gate = site.app("a", app)
    client = await site.connect()
    client.send(GET)
    await wait_until(lambda: app.began == 1)
    gate.close("INSTANCE_STOPPING")
    draining = asyncio.ensure_future(gate.drain(WITHIN))
    refused = await site.get("/")
    assert (refused.status, refused.reason) == (503, "INSTANCE_STOPPING")
    assert not draining.done()
    app.let_go()
    assert await draining == 0
    assert (await client.answer()).status == 200


async def test_drain_cuts_what_does_not_end(site, wait_until):
    app = Blocker()
    gate = site.app("a", app)
    client = await site.connect()
    client.send(GET)
    await wait_until(lambda: app.began == 1)
    assert await gate.drain(0.05) == 1
    cut = await client.answer()
    assert (cut.status, cut.reason) == (503, "INSTANCE_STOPPING")
    await wait_until(lambda: app.cancelled == 1)
    assert gate.figures().in_flight == 0


async def test_drain_waits_for_work_after_the_response_and_it_holds_no_place(site, wait_until):
    after = Blocker()

    async def app(scope, receive, send):
        await answer(send)
        if scope["path"] == "/work":
            await after(scope, receive, lambda message: asyncio.sleep(0))

    gate = site.app("a", app, GateLimits(max_concurrent_requests=1))
    assert (await site.get("/work")).status == 200
    assert (await site.get("/")).status == 200
    draining = asyncio.ensure_future(gate.drain(WITHIN))
    assert (await site.get("/")).status == 200
    assert not draining.done()
    after.let_go()
    assert await draining == 0


async def test_draining_a_gate_that_never_saw_a_request_is_immediate(site):
    assert await site.app("a").drain(WITHIN) == 0


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        BaseException("x"),
        asyncio.CancelledError(),
    ],
)
async def test_whatever_leaves_an_app_is_a_500_and_a_fault_and_no_more(site, error):
    async def app(scope, receive, send):
        raise error

    gate = site.app("a", app)
    site.app("b")
    failed = await site.get("/secret-path")
    assert (failed.status, failed.reason) == (500, "APP_RAISED")
    assert type(error).__name__ in site.faults[0]
    assert (gate.figures().errors, gate.figures().faults, gate.figures().in_flight) == (1, 1, 0)
    assert (await site.get("/", host="b.localhost")).status == 200


async def test_an_app_that_ends_without_a_response_is_a_fault(site):
    async def silent(scope, receive, send):
        pass

    async def half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    for app in (silent, half):
        site.app("a", app)
        failed = await site.get("/")
        assert (failed.status, failed.reason) == (500, "APP_NO_RESPONSE")
    assert len(site.faults) == 2


async def test_an_exception_in_the_middle_of_a_response_closes_the_connection(site):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("middle")

    site.app("a", app)
    client = await site.connect()
    client.send(GET)
    data = await client.rest()
    assert b"half" in data
    assert not data.endswith(b"0\r\n\r\n")
    assert "middle" in site.faults[0]


BAD_HEADERS = [
    (b"x-a", b"b\r\nset-cookie: forged=1"),
    (b"x-a", b"b\nc"),
    (b"x-a", b"b\0c"),
    (b"x-a\r\nx-b", b"c"),
    (b"x a", b"c"),
    (b"", b"c"),
    (b"content-length", b"abc"),
    (b"content-length", b"1"),
]


@pytest.mark.parametrize("header", BAD_HEADERS)
async def test_a_response_that_forges_bytes_is_refused_and_recorded(site, header):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [header]})
        await send({"type": "http.response.body", "body": b"body"})

    gate = site.app("a", app)
    refused = await site.get("/")
    assert (refused.status, refused.reason) == (500, "APP_BAD_RESPONSE")
    assert "forged" not in str(refused.headers)
    assert gate.figures().faults == 1


async def test_apps_do_not_speak_for_the_node_or_the_connection(site):
    async def app(scope, receive, send):
        headers = [(b"X-AppSupervisor-Reason", b"X"), (b"Transfer-Encoding", b"chunked"), (b"upgrade", b"x")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"plain"})

    site.app("a", app)
    seen = await site.get("/")
    assert seen.body == b"plain"
    assert not {"x-appsupervisor-reason", "transfer-encoding", "upgrade"} & seen.headers.keys()


async def test_faults_are_told_at_a_bounded_rate_but_all_counted(site):
    async def app(scope, receive, send):
        raise ValueError("again")

    gate = site.app("a", app)
    for _ in range(40):
        assert (await site.get("/")).status == 500
    assert gate.figures().faults == 40
    assert 1 <= len(site.faults) < 40


async def test_a_lanes_failure_is_answered_with_its_reason(site):
    async def crashed(scope, receive, send):
        raise SupervisorError("APP_CRASHED", "The app's process died.")

    async def interrupted(scope, receive, send):
        try:
            raise RequestInterrupted
        except Exception:
            pass

    site.app("a", crashed)
    failed = await site.get("/")
    assert (failed.status, failed.reason) == (502, "APP_CRASHED")
    site.app("a", interrupted)
    failed = await site.get("/")
    assert (failed.status, failed.reason) == (504, "APP_BLOCKED_LOOP")
    assert site.faults == []


async def test_each_request_runs_in_a_context_of_its_own_that_names_its_instance(site):
    leaked = []

    async def app(scope, receive, send):
        leaked.append(CURRENT_INSTANCE.get())
        CURRENT_INSTANCE.set("overwritten")
        await answer(send)

    site.app("a", app)
    site.app("b", app)
    for host in ("a.localhost", "b.localhost", "a.localhost"):
        await site.get("/", host=host)
    assert leaked == ["apps/a/instances/1", "apps/b/instances/1", "apps/a/instances/1"]
    assert CURRENT_INSTANCE.get() == ""


async def test_a_swap_under_load_loses_no_request(site, wait_until):
    def version(number):
        async def app(scope, receive, send):
            await asyncio.sleep(0.001)
            await answer(send, body=b"%d" % number)

        return app

    gate = site.app("a", version(0))
    done = False
    statuses = []

    async def client():
        connection = await site.connect()
        while not done:
            connection.send(GET)
            statuses.append((await connection.answer()).status)

    clients = [asyncio.ensure_future(client()) for _ in range(8)]
    for number in range(1, 30):
        await wait_until(lambda n=number: len(statuses) >= n * 10)
        old, gate = gate, site.app("a", version(number))
        assert await old.drain(WITHIN) == 0
    done = True
    await asyncio.gather(*clients)
    assert set(statuses) == {200}


async def test_figures_tell_rates_and_quantiles(site):
    async def app(scope, receive, send):
        await asyncio.sleep(0.02)
        await answer(send)

    gate = site.app("a", app)
    assert gate.figures().last_request_time is None
    began = time.monotonic()
    await asyncio.gather(*(site.get("/") for _ in range(10)))
    ended = time.monotonic()
    figures = gate.figures()
    assert figures.requests == 10
    assert 0.019 <= figures.latency_p50 <= figures.latency_p99 < 2 * (ended - began)
    assert figures.requests_per_second > 0
    assert began <= figures.last_request_time <= ended


async def test_what_a_dormant_gate_holds_goes_to_its_successor(site, wait_until):
    old = site.app("a", None)
    old.hold(lambda: None)
    clients = [await site.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(GET)
        await wait_until(lambda n=number: old.figures().queued == n + 1)
    wanted = []
    new = Gate("apps/a/instances/2")
    new.hold(lambda: wanted.append(1))
    old.forward(new)
    await wait_until(lambda: new.figures().queued == 3)
    late = await site.connect()
    late.send(GET)
    await wait_until(lambda: new.figures().queued == 4)

    async def app(scope, receive, send):
        await answer(send, body=CURRENT_INSTANCE.get().encode())

    new.open(app)
    for client in (*clients, late):
        assert (await client.answer()).body == b"apps/a/instances/2"
    assert wanted == [1]
    assert await old.drain(WITHIN) == 0
    assert old.figures().requests == 0
    assert new.figures().requests == 4


async def test_a_blocked_front_loop_does_not_block_the_control_loop_for_ever(make_site, wait_until):
    site = await make_site()
    go_on = threading.Event()

    async def blocks(scope, receive, send):
        go_on.wait(2 * WITHIN)

    gate = site.app("a", blocks)
    client = await site.connect()
    client.send(GET)
    await wait_until(lambda: gate.figures().in_flight == 1)
    await asyncio.wait_for(gate.drain(0), WITHIN)
    assert gate.figures().in_flight == 1
    go_on.set()
