"""What an app that blocks, computes, holds the interpreter's lock or crashes costs its neighbours' requests.

Run `python -m tests.bench.noisy_neighbours [--quick]`. One node process, two neighbours in the SHARED tier at
a steady rate, one kind of hog after the other; what they are compared with is the first row, without any.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from tests.bench.results import Row, at_most, row, table

ROOT = Path(__file__).resolve().parents[2]
RATE = 200
"""Requests a second to each neighbour, sent on time whether or not earlier ones were answered."""
KEPT = 2.0
"""Seconds that an idle connection is kept: less than the node does."""
NEIGHBOURS = ("one", "two")
BLOCKS = 20
"""Blocks after which a hog must have been demoted, far more than it takes."""
BUDGET = pb.Limits().block_budget
BUDGET.FromMilliseconds(1000)
LONG = pb.Limits().block_budget
LONG.FromMilliseconds(60_000)


@dataclass
class Beside:
    """The neighbours' latency beside one kind of hog."""

    name: str
    latencies: list[float]
    failed: int
    note: str = ""

    def at(self, part: float) -> float:
        """Return a quantile in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000


class Bench:
    """A node process and what is asked of it."""

    def __init__(self, stub: Any, host: str, port: int, seconds: float) -> None:
        self.stub = stub
        self.host, self.port = host, port
        self.seconds = seconds
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def start(self, app: str, entrypoint: str, tier: int, **limits: Any) -> None:
        """Start an app and wait until it runs."""
        spec = pb.InstanceSpec(
            name=f"apps/{app}/instances/x", app_uid=app, generation=1, epoch=1, entrypoint=entrypoint,
            isolation=tier, limits=pb.Limits(**limits),  # type: ignore[arg-type]
        )  # fmt: skip
        spec.restart_policy.min_backoff.FromMilliseconds(10)
        spec.restart_policy.max_backoff.FromMilliseconds(20)
        spec.restart_policy.max_restarts = 1000
        await self.stub.StartInstance(pb.StartInstanceRequest(spec=spec))
        while (await self.get(app)).state != pb.Instance.RUNNING:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)

    async def get(self, app: str) -> pb.Instance:
        """Return an app's instance."""
        return await self.stub.GetInstance(pb.GetInstanceRequest(name=f"apps/{app}/instances/x"))

    async def stop(self, app: str) -> None:
        """Stop an app and wait until it is gone."""
        await self.stub.StopInstance(pb.StopInstanceRequest(name=f"apps/{app}/instances/x", epoch=1))
        with contextlib.suppress(grpc.aio.AioRpcError):
            while True:
                await self.get(app)
                await asyncio.sleep(0.05)

    async def ask(self, app: str, path: str = "/") -> int:
        """Send one request on a connection that is kept, as a gateway's; return its status, 0 for none."""
        try:
            reader, writer = self._kept() or await self._connect()
        except OSError:
            return 0
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-App: {app}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, EOFError):
            writer.close()
            return 0
        except asyncio.CancelledError:
            writer.close()
            raise
        if b"connection: close" in head:
            writer.close()
        else:
            self._idle.append((time.monotonic(), reader, writer))
        return int(head.split(maxsplit=2)[1])

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return the connection that was used last; the node closes those that are idle for long."""
        if not self._idle:
            return None
        since, reader, writer = self._idle.pop()
        if time.monotonic() - since < KEPT:
            return reader, writer
        writer.close()
        self._close_idle()  # all of them are older still
        return None

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop()[2].close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)

    async def measure(self, name: str, note: str = "") -> Beside:
        """Send the neighbours their requests for a while."""
        seen = Beside(name, [], 0, note)
        interval = 1 / (RATE * len(NEIGHBOURS))
        began = time.perf_counter()
        tasks = []
        for number in range(int(self.seconds / interval)):
            due = began + number * interval
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._one(NEIGHBOURS[number % 2], due, seen)))
        await asyncio.gather(*tasks)
        # A stall leaves hundreds; all closed together they would be the next round's first stall.
        self._close_idle()
        return seen

    async def _one(self, app: str, due: float, seen: Beside) -> None:
        status = await self.ask(app)
        # From when it was due: a stall counts for all that would have come meanwhile.
        seen.latencies.append(time.perf_counter() - due)
        seen.failed += status != 200

    @asynccontextmanager
    async def asking(self, app: str, path: str, *, pause: float = 0.0) -> AsyncIterator[None]:
        """Ask a hog for its mischief again and again meanwhile."""

        async def again() -> None:
            while True:
                await self.ask(app, path)
                await asyncio.sleep(pause or 0.001)

        task = asyncio.create_task(again())
        await asyncio.sleep(0.2)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def run(self) -> list[Beside]:
        """Measure beside each kind of hog."""
        for app in NEIGHBOURS:
            await self.start(app, "behaviours:ready", pb.InstanceSpec.SHARED)
        await self.measure("warm-up")
        rows = [await self.measure("no hog")]
        hog = "blockers:asked"
        await self.start(
            "hog", hog, pb.InstanceSpec.SHARED, block_budget=BUDGET, block_action=pb.Limits.REPORT
        )
        async with self.asking("hog", "/?do=spin", pause=2.0):
            rows.append(await self.measure("blocks the shared loop, rescued only", "budget 1 s, then 0.1 s"))
        await self.stop("hog")
        await self.start("hog", hog, pb.InstanceSpec.SHARED, block_budget=BUDGET)
        for _ in range(BLOCKS):
            await self.ask("hog", "/?do=spin")
            if (await self.get("hog")).isolation == pb.InstanceSpec.THREAD:
                break
        else:
            raise RuntimeError(f"{BLOCKS} blocks and the hog is not demoted")
        async with self.asking("hog", "/?do=spin"):
            rows.append(await self.measure("the same, after its demotion", "THREAD"))
        await self.stop("hog")
        for count in (1, 4):
            for number in range(count):
                await self.start(f"hog{number}", hog, pb.InstanceSpec.THREAD, block_budget=LONG)
            async with contextlib.AsyncExitStack() as stack:
                for number in range(count):
                    await stack.enter_async_context(self.asking(f"hog{number}", "/?do=spin&seconds=20"))
                rows.append(await self.measure(f"{count} CPU hog{'s' * (count > 1)}", "THREAD"))
            for number in range(count):
                await self.stop(f"hog{number}")
        await self.start("hog", hog, pb.InstanceSpec.PROCESS, block_budget=LONG)
        async with self.asking("hog", "/?do=hold&seconds=10"):
            rows.append(await self.measure("holds its interpreter's lock", "PROCESS"))
        await self.stop("hog")
        await self.start("hog", hog, pb.InstanceSpec.PROCESS)
        async with self.asking("hog", "/?do=segfault", pause=0.05):
            rows.append(await self.measure("segmentation faults", "PROCESS"))
        restarts = (await self.get("hog")).restart_count
        rows[-1].note += f", {restarts} restarts"
        await self.stop("hog")
        return rows


ADDED = {
    "the same, after its demotion": 10,
    "1 CPU hog": 5,
    "4 CPU hogs": 15,
    "holds its interpreter's lock": 2,
    "segmentation faults": 2,
}
"""The most milliseconds that a hog may add to its neighbours' 99th percentile."""


def rows_of(found: list[Beside]) -> list[Row]:
    """Return the rows of the common table; each is told beside the first, which has no hog."""
    base = found[0].at(0.99)
    rows = [row("neighbours without a hog: p99", base, "ms")]
    for one in found[1:]:
        what = f"neighbours beside: {one.name}"
        what += f" ({one.note})" if one.note else ""
        rows.append(row(f"{what}: p99", one.at(0.99), "ms", base=base))
        if one.name in ADDED:
            rows.append(
                row("… p99 added", one.at(0.99) - base, "ms", target=at_most(ADDED[one.name], "node"))
            )
        else:
            rows.append(
                row("… worst delay, budget 1,000 ms", one.at(1.0), "ms", target=at_most(1100, "node"))
            )
        failed = f"… failed of {len(one.latencies):,}"
        rows.append(row(failed, one.failed, "requests", target=at_most(0, "node")))
    return rows


def measure(quick: bool) -> list[Row]:
    """Return what each kind of hog costs its neighbours."""
    return rows_of(asyncio.run(run(1.5 if quick else 10.0)))


async def run(seconds: float) -> list[Beside]:
    """Start a node and measure."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        command = [
            sys.executable, "-m", "runtime_node", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
            "--data-dir", f"{directory}/data", "--app-dir", str(ROOT / "tests/apps/node"),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
        with log.open("wb") as out:
            process = subprocess.Popen(command, stderr=out, env=environment)  # noqa: ASYNC220 - nobody waits
        try:
            deadline = time.monotonic() + 30
            while (ready := re.search(r"grpc=(\S+) http=(\S+):(\d+)", log.read_text())) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(log.read_text())
                await asyncio.sleep(0.05)
            async with grpc.aio.insecure_channel(ready[1]) as channel:
                bench = Bench(RuntimeEnvironmentStub(channel), ready[2], int(ready[3]), seconds)
                return await bench.run()
        finally:
            process.terminate()
            process.wait(20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1.5 s per row instead of 10")
    print(table(measure(parser.parse_args().quick)))
