"""One more app: from CreateApp to its first answer, the memory it takes, beside one uvicorn process each.

Run as `python -m tests.bench.end_to_end [--quick]`. Both sides run the same code with a new SQLite
database for each app; the peer is what a user would do without a host: a process per app.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import IsolationTier
from tests.e2e.stack import ROOT, Stack, free_port

BENCH_APPS = ROOT / "tests/bench/apps"
APPS = {"small": "bench_apps:small", "fastapi20": "bench_apps:fastapi20"}
TIERS = ("SHARED", "THREAD", "PROCESS")
PATIENCE = 30.0


def first_answer(port: int, host: str) -> None:
    """Ask until the answer is 200."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", "/", headers={"Host": host})
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.001)
    raise AssertionError(f"{host} did not answer within {PATIENCE:.0f} s")


def memory(process: psutil.Process) -> int:
    """Return the proportional memory (PSS) of a process and all it forked, bytes."""
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_full_info().pss for member in family)


class Peer:
    """One uvicorn process per app."""

    def __init__(self, folder: Path, app: str) -> None:
        self._folder = folder
        self._app = app
        self.processes: list[subprocess.Popen[bytes]] = []

    def start_one(self) -> float:
        """Start one more app; return the seconds to its first answer."""
        port = free_port()
        database = self._folder / f"peer-{port}.db"
        start = time.perf_counter()
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "--factory", f"bench_apps:bare_{self._app}",
                 "--port", str(port), "--log-level", "error"],
                cwd=BENCH_APPS, env={**os.environ, "DATABASE_URL": f"sqlite:///{database}"},
            )
        )  # fmt: skip
        first_answer(port, "localhost")
        return time.perf_counter() - start

    def memory_each(self) -> float:
        """Return the mean memory of one app, bytes."""
        return statistics.mean(memory(psutil.Process(one.pid)) for one in self.processes)

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(PATIENCE)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def measure_ours(stack: Stack, name: str, tier: str, count: int) -> tuple[list[float], list[float], float]:
    """Create so many apps one by one; return seconds to the first answer, to ready, bytes of each."""
    node = psutil.Process(stack.nodes["node-1"].pid)
    isolation = IsolationTier.Value(tier)
    prefix = f"{name}-{tier.lower()}"
    stack.create(f"{prefix}-warm", APPS[name], isolation=isolation)
    first_answer(stack.http_port(), f"{prefix}-warm.localhost")
    before = memory(node)
    answered, ready = [], []
    for number in range(count):
        app_id = f"{prefix}-{number}"
        app = catalog.App(entrypoint=APPS[name], isolation=isolation)
        request = catalog.CreateAppRequest(app_id=app_id, app=app)
        start = time.perf_counter()
        stack.apps.CreateApp(request, timeout=PATIENCE)
        first_answer(stack.http_port(), f"{app_id}.localhost")
        answered.append(time.perf_counter() - start)
    for number in range(count):
        [instance] = stack.get(f"{prefix}-{number}").instances
        span = instance.ready_time.ToNanoseconds() - instance.create_time.ToNanoseconds()
        ready.append(span / 1e9)
    return answered, ready, (memory(node) - before) / count


def measure_dormant(stack: Stack, count: int) -> float:
    """Create so many ON_REQUEST apps; return the node's bytes for each."""
    node = psutil.Process(stack.nodes["node-1"].pid)
    before = memory(node)
    app = catalog.App(entrypoint=APPS["small"], activation="ON_REQUEST")
    operations = [
        stack.apps.CreateApp(catalog.CreateAppRequest(app_id=f"dormant-{n}", app=app), timeout=PATIENCE)
        for n in range(count)
    ]
    for operation in operations:
        stack.result(operation)
    return (memory(node) - before) / count


def row(what: str, times: list[float], base: float | None, each: float, ready: list[float] | None) -> None:
    p50, p99 = (quantile(times, q) * 1000 for q in (0.5, 0.99))
    faster = f"{base / statistics.median(times):6.1f}x" if base else "      "
    started = ""
    if ready:
        started = f"{quantile(ready, 0.5) * 1000:9.1f} /{quantile(ready, 0.99) * 1000:7.1f}"
    print(f"  {what:<24}{p50:9.1f} /{p99:7.1f}  {faster}  {each / 1024:10.0f} KB  {started}")


def measure(name: str, count: int, peers: int) -> None:
    print(f"{name}: create -> first 200 p50 / p99 ms, against the peer, memory each, start p50 / p99 ms")
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(Path(folder), name)
        try:
            peer_times = [peer.start_one() for _ in range(peers)]
            base = statistics.median(peer_times)
            row("one uvicorn process each", peer_times, None, peer.memory_each(), None)
        finally:
            peer.close()
        with_stack(Path(folder) / "stack", lambda stack: _tiers(stack, name, count, base))


def _tiers(stack: Stack, name: str, count: int, base: float) -> None:
    for tier in TIERS:
        amount = count if tier != "PROCESS" else max(10, count // 4)
        times, ready, each = measure_ours(stack, name, tier, amount)
        row(tier, times, base, each, ready)


def with_stack(folder: Path, work: Callable[[Stack], None]) -> None:
    stack = Stack(folder, app_dirs=(BENCH_APPS,)).start()
    try:
        work(stack)
    finally:
        stack.channel.close()
        for process in (*stack.nodes.values(), stack.control_plane):
            process.clean_up()


def main(quick: bool) -> None:
    """Measure and print."""
    count, peers = (20, 3) if quick else (200, 10)
    for name in APPS:
        measure(name, count, peers)
    with tempfile.TemporaryDirectory() as folder:

        def dormant(stack: Stack) -> None:
            amount = 500 if quick else 5_000
            each = measure_dormant(stack, amount)
            print(f"one more dormant app on the node: {each:.0f} bytes (mean of {amount})")

        with_stack(Path(folder) / "stack", dormant)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer apps")
    main(parser.parse_args().quick)
