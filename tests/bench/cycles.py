"""What many starts and stops leave behind in a node: memory, threads, file descriptors.

Run as `python -m tests.bench.cycles [--quick]`. The node stands alone and is driven by its own API; each
cycle is an app of its own, whose data is removed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import grpc
import psutil

from appsupervisor.runtime.v1 import runtime_environment_pb2 as runtime
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from tests.bench.end_to_end import BENCH_APPS
from tests.bench.results import Row, at_most, row, table
from tests.e2e.stack import Process, free_port

AT_ONCE = 4
WARM_SHARE = 5
"""Cycles before the first look, as a share of the cycles between the looks: caches and the heap fill up."""
FASTAPI_EVERY = 10
"""One cycle in so many is of the FastAPI app, which is the dearest to stop."""


class Cycles:
    """Starts and stops apps, several at once, following the node's stream of states."""

    def __init__(self, stub: RuntimeEnvironmentStub) -> None:
        self._stub = stub
        self._waiting: dict[str, asyncio.Future[runtime.Instance]] = {}
        self._gone: dict[str, asyncio.Future[None]] = {}
        self._number = 0
        self.failed = 0

    async def follow(self) -> None:
        """Take in what the node tells until cancelled."""
        async for message in self._stub.WatchInstances(runtime.WatchInstancesRequest()):
            name = message.instance.name
            if message.type == runtime.WatchInstancesResponse.REMOVE:
                if (gone := self._gone.get(name)) and not gone.done():
                    gone.set_result(None)
                continue
            ended = message.instance.state in {runtime.Instance.RUNNING, runtime.Instance.FAILED}
            if ended and (ready := self._waiting.get(name)) and not ready.done():
                ready.set_result(message.instance)

    async def run(self, count: int) -> None:
        """Do so many cycles."""
        end = self._number + count

        async def work() -> None:
            while self._number < end:
                self._number += 1
                await asyncio.wait_for(self._one(self._number), 30)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def _one(self, number: int) -> None:
        name = f"apps/cycle-{number}/instances/i-1"
        uid = f"{number:08x}-0000-4000-8000-000000000000"
        kind = "fastapi20" if number % FASTAPI_EVERY == 0 else "small"
        spec = runtime.InstanceSpec(
            name=name, app_uid=uid, generation=1, epoch=1, entrypoint=f"bench_apps:{kind}"
        )
        loop = asyncio.get_running_loop()
        ready = self._waiting[name] = loop.create_future()
        gone = self._gone[name] = loop.create_future()
        await self._stub.StartInstance(runtime.StartInstanceRequest(spec=spec), timeout=30)
        if (await ready).state != runtime.Instance.RUNNING:
            self.failed += 1
        stop = runtime.StopInstanceRequest(name=name, epoch=1, purge_data=True, app_uid=uid)
        await self._stub.StopInstance(stop, timeout=30)
        await gone
        del self._waiting[name], self._gone[name]


def standing(node: psutil.Process) -> tuple[int, int, int, int]:
    """Return the node's resident bytes, threads, descriptors and children's count."""
    family = [node, *node.children(recursive=True)]
    memory = sum(one.memory_full_info().pss for one in family)
    return memory, node.num_threads(), node.num_fds(), len(family) - 1


def orphans(node: psutil.Process) -> int:
    """Return how many files the node has open that are deleted already: those of stopped apps."""
    links = []
    for link in Path(f"/proc/{node.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(link))
    return sum(link.endswith("(deleted)") for link in links)


async def settled(node: psutil.Process, patience: float) -> tuple[int, int, int, int]:
    """Return the least of some seconds, once the node has had time to collect what apps never closed."""
    deadline = time.monotonic() + patience
    while orphans(node) and time.monotonic() < deadline:  # noqa: ASYNC110 - another process is looked at
        await asyncio.sleep(0.2)
    seen = []
    for _ in range(6):
        await asyncio.sleep(0.5)
        seen.append(standing(node))
    return tuple(min(one[part] for one in seen) for part in range(4))  # type: ignore[return-value]


async def drive(port: int, node: psutil.Process, count: int, patience: float) -> tuple[list[int], float, int]:
    options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        cycles = Cycles(RuntimeEnvironmentStub(channel))
        following = asyncio.create_task(cycles.follow())
        await cycles.run(count // WARM_SHARE)
        before = await settled(node, patience)
        start = time.perf_counter()
        await cycles.run(count)
        rate = count / (time.perf_counter() - start)
        after = await settled(node, patience)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return [b - a for a, b in zip(before, after, strict=True)], rate, cycles.failed


def measure(quick: bool) -> list[Row]:
    """Return what is left after the cycles."""
    # What apps never closed is collected now and then: the node is given so many seconds for it.
    count, patience = (600, 10) if quick else (10_000, 30)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = Process(
            "node",
            [
                *("-m", "runtime_node", "--listen", f"127.0.0.1:{port}", "--http-listen", "127.0.0.1:0"),
                *("--data-dir", f"{folder}/data", f"--app-dir={BENCH_APPS}", "--log-level=WARNING"),
            ],
            Path(folder) / "node.log",
        )
        process.start()
        try:
            left, rate, failed = asyncio.run(drive(port, psutil.Process(process.pid), count, patience))
        except BaseException:
            sys.stdout.write(process.text()[-2_000:])
            raise
        finally:
            process.clean_up()
    what = f"{count:,} start/stop cycles and up to {patience} s of rest"
    return [
        row(f"{what}, small and a tenth fastapi20: rate", rate, "/s"),
        row("… failed", failed, "cycles", target=at_most(0, "node")),
        row("… memory left (PSS)", left[0] / 2**20, "MB", target=at_most(5, "node")),
        row("… threads left", left[1], "threads", target=at_most(0, "node")),
        row("… file descriptors left", left[2], "fds", target=at_most(0, "node")),
        row("… processes left", left[3], "processes", target=at_most(0, "node")),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="600 cycles instead of 10,000")
    print(table(measure(parser.parse_args().quick)))
