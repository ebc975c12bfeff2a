"""From a change to those who watch: with 1 and with 500 watchers, and what an idle one costs the server.

Run as `python -m tests.bench.watchers [--quick]`. Watchers are gRPC streams of another process, 50 to a
channel; latency runs from the call that makes the change, so its durable write is in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psutil

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from tests.bench.catalog import CATALOG, catalog_server
from tests.bench.results import Row, at_most, quantile_row, row, table

PER_CHANNEL = 50
MARK = b"changed-at="
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
APPS = 10


async def watch(port: int, count: int) -> None:
    """Hold so many streams until stdin ends; print when all are synced, then the seconds of each change."""
    found: list[float] = []
    synced = asyncio.Event()
    waiting = count

    async def one(call: Any) -> None:
        nonlocal waiting
        newest = 0.0
        async for message in call:
            at = message.find(MARK)  # what is not parsed here does not slow the server down
            if at >= 0:
                changed = float(message[at + len(MARK) : at + len(MARK) + 20])
                if changed > newest:  # the app is told again when the reconciler has looked at it
                    newest = changed
                    if not waiting:
                        found.append(time.monotonic() - changed)
            elif waiting and pb.WatchAppsResponse.FromString(message).type == pb.WatchAppsResponse.SYNCED:
                waiting -= 1
                if not waiting:
                    synced.set()

    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", OWN_CONNECTION)
        for _ in range((count + PER_CHANNEL - 1) // PER_CHANNEL)
    ]
    calls = [
        channels[number // PER_CHANNEL].unary_stream(f"/{CATALOG}/WatchApps")(b"") for number in range(count)
    ]
    tasks = [asyncio.create_task(one(call)) for call in calls]
    await asyncio.wait_for(synced.wait(), 30)
    print("synced", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for channel in channels:
        await channel.close()
    print(json.dumps(found))


@contextmanager
def watchers(port: int, count: int) -> Iterator[subprocess.Popen[str]]:
    """Run so many watchers in a process of their own; yields once all are synced."""
    command = [sys.executable, "-m", "tests.bench.watchers", "--watch", str(port), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "synced\n"
            yield process
        finally:
            process.kill()


def change(stub: AppCatalogStub, number: int) -> None:
    """Change one app in a way that every watcher can tell the time of."""
    app = pb.App(name=f"apps/app-{number % APPS:06d}")
    app.annotations["note"] = f"{MARK.decode()}{time.monotonic():020.6f}"
    request = pb.UpdateAppRequest(app=app)
    request.update_mask.paths.append("annotations")
    stub.UpdateApp(request, timeout=10)


def measure(quick: bool) -> list[Row]:
    """Return the latencies with one and with many watchers, and the memory of an idle one."""
    changes = 40 if quick else 100
    rows = []
    with catalog_server(APPS) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = AppCatalogStub(channel)
        [server] = [one for one in psutil.Process().children() if "catalog_server" in " ".join(one.cmdline())]
        for number in range(20):
            change(stub, number)
        for count, most in ((1, 20), (500, 150)):
            before = server.memory_full_info().uss
            with watchers(port, count) as process:
                each = (server.memory_full_info().uss - before) / count
                for number in range(changes):
                    change(stub, number)
                    time.sleep(0.02 if count == 1 else 0.25)
                text, _ = process.communicate(timeout=30)
            found = json.loads(text)
            expected = changes * count
            assert len(found) == expected, f"{len(found)} of {expected} changes seen"
            what = f"change → seen by each of {count} watchers"
            rows.append(quantile_row(f"{what}, p50", found, 0.5, "ms", scale=1e3))
            target = at_most(most, "control plane")
            rows.append(quantile_row(f"{what}, p99", found, 0.99, "ms", scale=1e3, target=target))
        rows.append(
            row(
                "an idle watcher: memory of the server",
                each / 1024,
                "KB",
                target=at_most(32, "control plane"),
            )
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer changes")
    parser.add_argument("--watch", nargs=2, type=int, metavar=("PORT", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        asyncio.run(watch(*options.watch))
    else:
        print(table(measure(options.quick)))
