"""Dormant apps: the first request to one, a burst of first requests, and a node that is full of them.

Run as `python -m tests.bench.dormancy [--quick]`.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc
import psutil
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.runtime.v1 import runtime_environment_pb2 as runtime
from tests.bench.end_to_end import memory, running
from tests.bench.results import Row, at_most, quantile, quantile_row, row, table
from tests.e2e.stack import Stack

CLIENTS = 32
APPS = {"small": "bench_apps:small", "fastapi20": "bench_apps:fastapi20"}


async def create_all(address: str, apps: dict[str, catalog.App]) -> int:
    """Create apps from several clients and wait for the outcome of each; return how many failed at first."""
    names = iter(apps.items())
    failed = 0

    async def client(channel: grpc.aio.Channel) -> None:
        nonlocal failed
        stub, operations = AppCatalogStub(channel), operations_pb2_grpc.OperationsStub(channel)
        for app_id, app in names:
            operation = await stub.CreateApp(catalog.CreateAppRequest(app_id=app_id, app=app), timeout=60)
            if not operation.done:
                request = operations_pb2.WaitOperationRequest(
                    name=operation.name, timeout=Duration(seconds=60)
                )
                operation = await operations.WaitOperation(request, timeout=65)
            assert operation.done, operation
            if operation.HasField("error"):
                failed += 1
                print(app_id, operation.error.message)

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(client(channel) for _ in range(CLIENTS)))
    return failed


def ask(port: int, host: str) -> float:
    """Return the seconds of one request on a new connection; it must be answered 200."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/", headers={"Host": host})
    answer = connection.getresponse()
    answer.read()
    took = time.perf_counter() - start
    connection.close()
    assert answer.status == 200, answer.status
    return took


def wakes(stack: Stack, name: str, count: int) -> list[Row]:
    """Return what first requests take beyond what the start of the same app takes."""
    eager = {f"eager-{name}-{n}": catalog.App(entrypoint=APPS[name]) for n in range(count)}
    for app_id, app in eager.items():  # one by one, so that starts don't wait for each other
        asyncio.run(create_all(stack.address, {app_id: app}))
    spans = [stack.get(app_id).instances[0] for app_id in eager]
    starts = [(one.ready_time.ToNanoseconds() - one.create_time.ToNanoseconds()) / 1e9 for one in spans]
    dormant = {
        f"dormant-{name}-{n}": catalog.App(entrypoint=APPS[name], activation="ON_REQUEST")
        for n in range(count)
    }
    asyncio.run(create_all(stack.address, dormant))
    port = stack.http_port()
    firsts = [ask(port, f"{app_id}.localhost") for app_id in dormant]
    base = statistics.median(starts) * 1e3
    median = statistics.median(firsts) * 1e3
    what = f"first request to a dormant {name}"
    return [
        quantile_row(f"{what}, p50, against the start of an EAGER one", firsts, 0.5, "ms", scale=1e3,
                     base=base),
        row("… beyond that start, p50", median - base, "ms", target=at_most(5, "node")),
        quantile_row("… p99, against that of the start", firsts, 0.99, "ms", scale=1e3,
                     base=quantile(starts, 0.99) * 1e3),
    ]  # fmt: skip


async def all_at_once(port: int, host: str, count: int) -> tuple[Counter[str], set[bytes]]:
    """Send so many first requests at the same moment; return statuses and the bodies of the good ones."""
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    pairs = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(count)))
    for _, writer in pairs:
        writer.write(request)
    statuses: Counter[str] = Counter()
    bodies = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            data = await asyncio.wait_for(reader.read(), 30)
            status = data[9:12].decode() or "connection lost"
        except (OSError, TimeoutError) as broken:
            data, status = b"", type(broken).__name__
        statuses[status] += 1
        if status == "200":
            bodies.add(data.rpartition(b"\r\n\r\n")[2])
        writer.close()

    await asyncio.gather(*(answer(*pair) for pair in pairs))
    return statuses, bodies


def bursts(stack: Stack, rounds: int, size: int) -> list[Row]:
    """Return how many starts a burst makes, how many requests are lost, and how long it takes."""
    limits = runtime.Limits(max_queued_requests=size)  # the bound is the user's; what fits must be answered
    app = catalog.App(entrypoint="bench_apps:counted", activation="ON_REQUEST", limits=limits)
    asyncio.run(create_all(stack.address, {f"burst-{n}": app for n in range(rounds)}))
    took, lost, most = [], 0, 0
    for number in range(rounds):
        start = time.perf_counter()
        statuses, bodies = asyncio.run(all_at_once(stack.http_port(), f"burst-{number}.localhost", size))
        took.append(time.perf_counter() - start)
        lost += size - statuses["200"]
        if set(statuses) != {"200"}:
            print("burst:", dict(statuses))
        most = max([most, *map(int, bodies)])
    what = f"burst of {size:,} first requests, {rounds} times"
    return [
        row(f"{what}: most starts of one app", most, "starts", target=at_most(1, "node")),
        row(f"{what}: lost", lost, "requests", target=at_most(0, "node")),
        row(f"{what}: all connected, woken and answered", [1e3 * one for one in took], "ms"),
    ]


def crowd(stack: Stack, dormant: int, live: int) -> list[Row]:
    """Fill the node; return its memory, and the times after kill -9 until all is as it was."""
    apps = {f"crowd-live-{n}": catalog.App(entrypoint=APPS["fastapi20"]) for n in range(live)}
    for number in range(dormant):
        apps[f"crowd-{number}"] = catalog.App(entrypoint=APPS["small"], activation="ON_REQUEST")
    node = stack.nodes["node-1"]
    start = time.perf_counter()
    failed = asyncio.run(create_all(stack.address, apps))
    created = len(apps) / (time.perf_counter() - start)
    size = memory(psutil.Process(node.pid))
    node.kill()
    start = time.perf_counter()
    node.start()
    registered, ready = watch_until_back(stack, start, len(apps), live)
    ask(stack.http_port(), f"crowd-{dormant - 1}.localhost")
    what = f"node of {dormant:,} dormant small and {live} live fastapi20 apps"
    return [
        row(f"{what}: created", created, "/s"),
        row("… starts that failed at first", failed, "apps", target=at_most(0, "node")),
        row(f"{what}: memory (PSS, zygote included)", size / 2**20, "MB", target=at_most(400, "node")),
        row("… kill -9, start → all registered", registered, "s", target=at_most(5, "node")),
        row("… kill -9, start → all EAGER ones ready", ready, "s", target=at_most(15, "node")),
    ]


def watch_until_back(stack: Stack, start: float, count: int, live: int) -> tuple[float, float]:
    """Return the seconds since `start` until all instances are known, and until the live ones run."""
    known: set[str] = set()
    running_ones: set[str] = set()
    registered = ready = 0.0
    options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
    with grpc.insecure_channel(stack.node_address(), options) as channel:
        grpc.channel_ready_future(channel).result(60)
        watch = channel.unary_stream(
            "/appsupervisor.runtime.v1.RuntimeEnvironment/WatchInstances",
            request_serializer=runtime.WatchInstancesRequest.SerializeToString,
            response_deserializer=runtime.WatchInstancesResponse.FromString,
        )(runtime.WatchInstancesRequest(batched=True), timeout=120)
        for message in watch:
            if message.type != runtime.WatchInstancesResponse.UPSERT:
                continue
            for one in message.instances or (message.instance,):
                known.add(one.name)
                if "crowd-live" in one.name and one.state == runtime.Instance.RUNNING:
                    running_ones.add(one.name)
            if not registered and len(known) >= count:
                registered = time.perf_counter() - start
            if not ready and len(running_ones) >= live:
                ready = time.perf_counter() - start
            if registered and ready:
                watch.cancel()
                break
    return registered, ready


def measure(quick: bool) -> list[Row]:
    """Return wakes, bursts and the full node."""
    count, rounds, dormant, live = (20, 2, 1_000, 50) if quick else (100, 5, 10_000, 500)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        with running(Path(folder) / "wakes") as stack:
            for name in APPS:
                rows += wakes(stack, name, count)
            rows += bursts(stack, rounds, 1_000)
        with running(Path(folder) / "crowd", "--max-instances=20000") as stack:
            rows += crowd(stack, dormant, live)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer apps")
    print(table(measure(parser.parse_args().quick)))
