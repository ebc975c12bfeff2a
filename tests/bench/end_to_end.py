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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from tests.bench.results import Row, at_least, at_most, quantile_row, row, table
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


def measure_ours(stack: Stack, name: str, tier: str, count: int) -> tuple[list[float], list[float], float]:
    """Create so many apps one by one; return seconds to the first answer, to ready, bytes of each."""
    node = psutil.Process(stack.nodes["node-1"].pid)
    isolation = InstanceSpec.IsolationTier.Value(tier)
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


MEMORY = {  # the most bytes of one more app, in KB
    ("small", "SHARED"): 25, ("small", "THREAD"): 25 + 40, ("small", "PROCESS"): 8 * 1024,
    ("fastapi20", "SHARED"): 350, ("fastapi20", "THREAD"): 350 + 40, ("fastapi20", "PROCESS"): 8 * 1024,
}  # fmt: skip
START = {  # the most milliseconds from start to ready, 99th percentile
    ("small", "SHARED"): 10, ("small", "THREAD"): 12, ("small", "PROCESS"): 80,
    ("fastapi20", "SHARED"): 40, ("fastapi20", "THREAD"): 42, ("fastapi20", "PROCESS"): 80,
}  # fmt: skip


def measure_app(name: str, count: int, peers: int) -> list[Row]:
    """Return the rows of one app in every tier, beside one process per app."""
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(Path(folder), name)
        try:
            peer_times = [peer.start_one() for _ in range(peers)]
            peer_memory = peer.memory_each()
        finally:
            peer.close()
        base = statistics.median(peer_times)
        with running(Path(folder) / "stack") as stack:
            rows = []
            for tier in TIERS:
                amount = count if tier != "PROCESS" else max(10, count // 4)
                times, ready, each = measure_ours(stack, name, tier, amount)
                rows += tier_rows(name, tier, times, ready, each, base, peer_memory)
            return rows


def tier_rows(
    name: str, tier: str, times: list[float], ready: list[float], each: float, base: float, peer_memory: float
) -> list[Row]:
    """Return what is told of one app in one tier."""
    one, shared = f"{name} in {tier}", tier == "SHARED"
    faster = base / statistics.median(times)
    create = f"{one}: CreateApp → first 200"
    return [
        quantile_row(f"{create}, p50, against a process each", times, 0.5, "ms", scale=1e3, base=base * 1e3,
                     ratio=1 / faster, target=at_most(25, "control plane") if shared else None),
        row("… times faster than a process each", faster, "x",
            target=at_least(40, "control plane") if shared else None),
        quantile_row("… p99", times, 0.99, "ms", scale=1e3,
                     target=at_most(80, "control plane") if shared else None),
        quantile_row(f"{one}: start → ready, p99", ready, 0.99, "ms", scale=1e3,
                     target=at_most(START[name, tier], "node")),
        row(f"{one}: memory of one more (PSS)", each / 1024, "KB", base=peer_memory / 1024,
            target=at_most(MEMORY[name, tier], "node")),
    ]  # fmt: skip


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[Stack]:
    """Run a control plane and one node; print their last lines if the work on them fails."""
    stack = Stack(folder, app_dirs=(BENCH_APPS,))
    try:
        stack.start(*flags)
        yield stack
    except BaseException:
        for process in (*stack.nodes.values(), stack.control_plane):
            print(f"---- {process.name}\n{process.text()[-2_000:]}")
        raise
    finally:
        stack.channel.close()
        for process in (*stack.nodes.values(), stack.control_plane):
            process.clean_up()


def measure(quick: bool) -> list[Row]:
    """Return one more app in every tier, and a dormant one."""
    count, peers = (20, 3) if quick else (150, 10)
    rows = [one for name in APPS for one in measure_app(name, count, peers)]
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "stack") as stack:
        amount = 500 if quick else 5_000
        each = measure_dormant(stack, amount)
    rows.append(
        row(f"one more dormant app, mean of {amount:,}: memory", each / 1024, "KB", target=at_most(1, "node"))
    )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer apps")
    print(table(measure(parser.parse_args().quick)))
