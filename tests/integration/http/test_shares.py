"""Who may hold the node's connections, and who gives way to whom."""

import asyncio
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runtime_node.http import FrontLimits, GateLimits
from tests.eventually import WITHIN

ROOT = Path(__file__).resolve().parents[3]
GET = b"GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHost: a.local"


async def hang(scope, receive, send):
    while (await receive())["type"] != "http.disconnect":
        pass


async def other_peer(site):
    """Connect from another address than the rest."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind(("127.0.0.2", 0))
    await asyncio.get_running_loop().sock_connect(sock, site.front.address)
    reader, writer = await asyncio.open_connection(sock=sock)
    client = type(site.clients[0] if site.clients else await site.connect())(reader, writer)
    site.clients.append(client)
    return client


async def test_heads_that_never_end_give_way_to_the_next_connection(make_site, wait_until):
    site = await make_site(FrontLimits(max_connections=20))
    site.app("a")
    hogs = []
    for number in range(30):
        hogs.append(await site.connect())
        hogs[-1].send(HALF)
        held = min(number + 1, 10) * len(HALF)
        await wait_until(lambda held=held: site.front._shared.head_bytes == held)
    # One peer has a half of the node; the oldest of it went, and nobody was refused.
    assert site.front.figures().connections == 10
    assert site.front.figures().refused_connections == 0
    assert b" 503 " in await hogs[0].rest()
    for client in (await site.connect(), await other_peer(site)):
        client.send(GET)
        assert (await client.answer()).status == 200


async def test_idle_connections_give_way_oldest_first_and_served_ones_never(make_site, wait_until):
    site = await make_site(FrontLimits(max_connections=8, peer_share=1.0))
    site.app("a")
    gate = site.app("b", hang)
    served = [await site.connect() for _ in range(4)]
    for client in served:
        client.send(GET.replace(b"a.local", b"b.local"))
    await wait_until(lambda: gate.figures().in_flight == 4)
    idle = [await site.connect() for _ in range(4)]
    for client in idle:
        client.send(GET)
        assert (await client.answer()).status == 200
    newcomers = [await site.connect() for _ in range(2)]
    for client in newcomers:
        client.send(GET)
        assert (await client.answer()).status == 200
    # Closed, without an answer to a request that was never made.
    assert [await client.rest() for client in idle[:2]] == [b"", b""]
    idle[2].send(GET)
    assert (await idle[2].answer()).status == 200
    assert gate.figures().in_flight == 4


async def test_only_when_all_are_served_the_next_one_is_turned_away(make_site, wait_until):
    site = await make_site(FrontLimits(max_connections=6, peer_share=0.5, app_share=1.0))
    gate = site.app("a", hang)
    mine = [await site.connect() for _ in range(3)]
    for client in mine:
        client.send(GET)
    await wait_until(lambda: gate.figures().in_flight == 3)
    assert b" 503 " in await (await site.connect()).rest()
    assert site.front.figures().refused_connections == 1
    others = [await other_peer(site) for _ in range(3)]
    for client in others:
        client.send(GET)
    await wait_until(lambda: gate.figures().in_flight == 6)
    # The ends of connections are counted as well.
    for client in mine:
        client.writer.transport.abort()
    await wait_until(lambda: site.front.figures().connections == 3)
    again = await site.connect()
    again.send(GET)
    await wait_until(lambda: gate.figures().disconnects == 3)
    assert site.front.figures().refused_connections == 1


async def test_a_trusted_proxy_stands_for_many_clients(make_site, wait_until):
    site = await make_site(
        FrontLimits(max_connections=6, peer_share=0.3, app_share=1.0), trusted_proxies=["127.0.0.1"]
    )
    gate = site.app("a", hang)
    for _ in range(6):
        (await site.connect()).send(GET)
    await wait_until(lambda: gate.figures().in_flight == 6)


async def test_one_app_holds_a_part_of_the_nodes_connections(make_site, wait_until):
    site = await make_site(FrontLimits(max_connections=8, peer_share=1.0, app_share=0.5))
    gate = site.app("a", hang, GateLimits(max_concurrent_requests=2, max_queued_requests=100))
    site.app("b")
    for _ in range(4):
        (await site.connect()).send(GET)
    await wait_until(lambda: (gate.figures().in_flight, gate.figures().queued) == (2, 2))
    extra = await site.connect()
    extra.send(GET)
    assert (await extra.answer()).status == 503
    extra.send(GET.replace(b"a.local", b"b.local"))
    assert (await extra.answer()).status == 200


async def test_what_half_heads_hold_together_is_bounded(make_site, wait_until):
    site = await make_site(FrontLimits(max_unfinished_head_bytes=100_000))
    site.app("a")
    hogs = [await site.connect() for _ in range(4)]
    for hog in hogs:
        hog.send(HALF + b"x" * 40_000)
        await asyncio.sleep(0)
    await wait_until(lambda: site.front.figures().refusals.get("SERVER_BUSY", 0) >= 2)
    assert site.front._shared.head_bytes <= 100_000
    for hog in hogs:
        hog.writer.transport.abort()
    await wait_until(lambda: site.front._shared.head_bytes == 0)
    assert (await site.get("/")).status == 200


async def test_head_lines_are_counted_before_the_head_is_complete(site):
    site.app("a")
    client = await site.connect()
    client.send(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 1000)
    assert b" 431 " in await client.rest()


PROGRAM = textwrap.dedent("""
    import asyncio, os, resource, socket, sys
    from runtime_node.http import Gate, HttpFront, Router

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})

    async def main():
        router = Router()
        front = HttpFront("127.0.0.1", 0, router)
        await front.start()
        gate = Gate("apps/a/instances/1")
        gate.open(app)
        router.set("a", [], gate)
        print(front.address[1], flush=True)
        taken = []
        while command := await asyncio.to_thread(sys.stdin.readline):
            if command == "take\\n":
                # What databases and other apps do.
                try:
                    while True:
                        taken.append(os.dup(1))
                except OSError:
                    pass
            else:
                while taken:
                    os.close(taken.pop())
            print(front.figures().connections, flush=True)

    asyncio.run(main())
""")


@pytest.fixture
def few_descriptors():
    """A front in a process that may open 256 descriptors."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
    )  # fmt: skip
    yield process
    process.stdin.close()
    process.terminate()
    process.wait(60)
    process.stdout.close()


def ask(process, command):
    process.stdin.write(command + "\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def get(port):
    with socket.create_connection(("127.0.0.1", port), WITHIN) as client:
        client.sendall(GET)
        data = b""
        while b"here" not in data and (piece := client.recv(1000)):
            data += piece
        return data


def test_idle_connections_leave_descriptors_to_others(few_descriptors):
    port = int(few_descriptors.stdout.readline())
    idle = [socket.create_connection(("127.0.0.1", port), WITHIN) for _ in range(300)]
    assert b"here" in get(port)
    assert ask(few_descriptors, "look") <= 128
    for client in idle:
        client.close()


def test_the_listener_outlives_a_lack_of_descriptors(few_descriptors):
    port = int(few_descriptors.stdout.readline())
    idle = [socket.create_connection(("127.0.0.1", port), WITHIN) for _ in range(60)]
    ask(few_descriptors, "take")
    # Those that were idle give way, so that somebody is served all the same.
    while b"here" not in try_get(port):
        pass
    ask(few_descriptors, "give back")
    assert b"here" in get(port)
    for client in idle:
        client.close()


def try_get(port):
    try:
        return get(port)
    except OSError:
        return b""
