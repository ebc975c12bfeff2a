"""Requests per second through the node's HTTP front against bare uvicorn: same app, same loop, same parser.

Run `python -m tests.bench.node_http [--quick]`. Rounds are interleaved, because machines are noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from runtime_node.http import Gate, HttpFront, Router
from tests.bench.results import Row, at_least, at_most, row, table

ROUTES = (1, 100, 10_000)
_BODY = b"Hello, world!\n"
_HEADERS = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(_BODY))]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer a small text: the least an app can do, so that what is measured is the server."""
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


def serve_front(port: int, routes: int) -> None:
    """Run the front with so many apps until the process is ended."""

    async def main() -> None:
        router = Router()
        front = HttpFront("127.0.0.1", port, router)
        await front.start()
        for number in range(routes):
            gate = Gate(f"apps/app-{number}/instances/1")
            router.set(f"app-{number}", [f"app-{number}.example"], gate)
            gate.open(hello)
        await asyncio.Event().wait()

    asyncio.run(main())


def uvicorn_command(port: int) -> list[str]:
    """Return the command that serves the same app by uvicorn alone, without logs as the front."""
    flags = "--host 127.0.0.1 --loop uvloop --http httptools --no-access-log --log-level error --lifespan off"
    return [
        sys.executable, "-m", "uvicorn", "tests.bench.node_http:hello", "--port", str(port),
        *flags.split(), "--no-server-header", "--no-proxy-headers",
    ]  # fmt: skip


@dataclass
class Contestant:
    """A server under load."""

    name: str
    command: list[str]
    port: int
    host: str
    rates: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    process: psutil.Process | None = None


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(contestant: Contestant) -> Iterator[None]:
    """Start a server, wait until it accepts, end it in the end."""
    process = subprocess.Popen(contestant.command)
    contestant.process = psutil.Process(process.pid)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", contestant.port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


def load(contestant: Contestant, seconds: float, connections: int) -> tuple[float, float]:
    """Put load on a server; return requests per second and the 99th percentile in milliseconds."""
    url = f"http://127.0.0.1:{contestant.port}/"
    if shutil.which("wrk"):
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"]
        command += ["-H", f"Host: {contestant.host}", url]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in text or "Socket errors" in text:
            raise RuntimeError(text)
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
        value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
        return rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
    return asyncio.run(_load_by_asyncio(contestant, seconds, connections))


async def _load_by_asyncio(contestant: Contestant, seconds: float, connections: int) -> tuple[float, float]:
    request = f"GET / HTTP/1.1\r\nHost: {contestant.host}\r\n\r\n".encode()
    latencies: list[float] = []
    end = time.monotonic() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", contestant.port)
        while time.monotonic() < end:
            began = time.monotonic()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            await reader.readexactly(len(_BODY))
            latencies.append(time.monotonic() - began)
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return len(latencies) / seconds, statistics.quantiles(latencies, n=100)[98] * 1e3


def lookup_time(routes: int) -> dict[str, float]:
    """Return microseconds per lookup of an app among so many, by way of addressing it."""
    router = Router()
    for number in range(routes):
        router.set(f"app-{number}", [f"app-{number}.example"], Gate(f"apps/app-{number}/instances/1"))
    name = b"app-%d" % (routes - 1)
    ways = {
        "domain": (name + b".example:8080", None, b"/"),
        "name": (name + b".localhost:8080", None, b"/"),
        "header": (b"127.0.0.1:8080", name, b"/"),
        "path": (b"127.0.0.1:8080", None, b"/apps/" + name + b"/index"),
    }
    return {
        way: min(timeit.repeat(lambda a=a: router.lookup(*a), number=20_000)) * 50 for way, a in ways.items()
    }


def measure(quick: bool, connections: int = 32) -> list[Row]:
    """Return the front's rates beside uvicorn's in interleaved rounds, and the time to find an app."""
    rounds, seconds = (3, 1.0) if quick else (5, 2.0)
    port = free_port()
    contestants = [Contestant("uvicorn", uvicorn_command(port), port, "app-0.localhost")]
    for routes in ROUTES:
        port = free_port()
        command = [sys.executable, "-m", "tests.bench.node_http", "--serve", str(port), str(routes)]
        contestants.append(Contestant(f"{routes:,} apps", command, port, f"app-{routes - 1}.localhost"))
    with running(contestants[0]), running(contestants[1]), running(contestants[2]), running(contestants[3]):
        for contestant in contestants:
            load(contestant, 1, connections)
        for turn in range(rounds):
            for place in range(len(contestants)):
                contestant = contestants[(turn + place) % len(contestants)]
                assert contestant.process is not None
                before = contestant.process.cpu_times()
                rate, p99 = load(contestant, seconds, connections)
                after = contestant.process.cpu_times()
                spent = after.user + after.system - before.user - before.system
                contestant.rates.append(rate)
                contestant.p99s.append(p99)
                contestant.cpu.append(spent / (rate * seconds) * 1e6)
    base = contestants[0]
    rows = []
    for one in contestants[1:]:
        # Pairs of one round saw the same neighbours on the machine.
        ratio = statistics.median(a / b for a, b in zip(one.rates, base.rates, strict=True))
        what = f"requests through the node, {one.name}, against bare uvicorn"
        rows.append(
            row(what, one.rates, "/s", base=statistics.median(base.rates), ratio=ratio,
                target=at_least(0.95, "node", "ratio"))
        )  # fmt: skip
        # CPU time is what a busy machine disturbs least.
        cpu = statistics.median(a / b for a, b in zip(one.cpu, base.cpu, strict=True))
        spent_by_base = statistics.median(base.cpu)
        rows.append(row(f"… CPU per request, {one.name}", one.cpu, "µs", base=spent_by_base, ratio=cpu))
        rows.append(row(f"… p99, {one.name}", one.p99s, "ms", base=statistics.median(base.p99s)))
    for routes in ROUTES:
        ways = lookup_time(routes)
        slowest = max(ways, key=lambda way: ways[way])
        what = f"finding one of {routes:,} apps, slowest way ({slowest})"
        rows.append(row(what, ways[slowest], "µs", target=at_most(3, "node")))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 s instead of 5 of 2 s")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--serve", nargs=2, type=int, metavar=("PORT", "ROUTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_front(*options.serve)
    else:
        print(table(measure(options.quick, options.connections)))
