"""A control plane with a fleet: the real one against simulated nodes, which pass the node's contract suite.

Run as `python -m tests.bench.fleet [--quick] [--size NODES,APPS]`, with nothing else on the machine: the
control plane has one core, who asks and the process of all nodes have another, so that neither starves the
other. CPU is the control plane's own. Each figure is told as it comes; the table has its target, and whether
that is met.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from google.longrunning import operations_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from runtime_node.registration import Registration
from services.control_plane.placement.choice import Candidates, Load, Neighbours, Wish, choose
from services.rpc import server as rpc_server
from tests.bench import fleet_seed
from tests.bench.results import Row, at_most, row, table
from tests.e2e.stack import Process, Stack, eventually
from tests.fakes.runtime_node import FakeNode

AT_ONCE = 32
FEW = (10, 100)
"""Nodes and apps of the fleet that the large one is compared with."""
VICTIM = fleet_seed.node_name(0)
"""The node that dies when the process of all of them is told SIGUSR1."""
WITHIN = 1200.0
"""Seconds for a whole fleet to be where it should be."""
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
TOLD_SECONDS = 0.25
"""Between two times that the nodes tell how many of them are heard."""
QUIET = 2.0
"""Seconds over which it is looked whether a control plane has come to rest."""


class Heard:
    """Whether a simulated node is listened to, as its registration asks."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.clock = node.time

    @property
    def streams(self) -> int:
        return self._node.streams

    @property
    def last_stream_end(self) -> float:
        return self._node.last_stream_end


class Anyone:
    """Has whatever name it likes."""

    def confirmed(self) -> None: ...

    def refused(self, reason: str, message: str) -> None: ...


async def simulate(nodes: int, control_plane: str, apps: int, hosted: Path) -> None:
    """Be so many nodes until the process is ended; each registers, and keeps so, by the node's own code.

    SIGUSR1 ends the first of them. SIGUSR2 has them run so many apps; then there is a file `hosted`. A file
    `heard` beside it tells how many have a stream open.
    """

    dies, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, dies.set)
    all_nodes: dict[int, FakeNode] = {}

    def host() -> None:
        for number, node in all_nodes.items():
            fleet_seed.host(node, number, nodes, apps)
        hosted.touch()

    loop.add_signal_handler(signal.SIGUSR2, host)

    async def live(number: int) -> None:
        node = FakeNode(node=fleet_seed.node_name(number), incarnation=fleet_seed.incarnation(number))
        # What came in is for tests to look at; here it would only grow.
        all_nodes[number] = node
        node.calls = collections.deque(maxlen=1)  # type: ignore[assignment]
        await node.start()
        feed: Any = Heard(node)
        registration = Registration(control_plane, node.registration, feed, Anyone())
        staying = asyncio.create_task(registration.run())
        if number == 0:
            await dies.wait()
            staying.cancel()
            await node.kill()
        await asyncio.wait({staying})

    async def tell() -> None:
        while True:
            hosted.with_name("heard").write_text(str(sum(node.streams > 0 for node in all_nodes.values())))
            await asyncio.sleep(TOLD_SECONDS)

    async def look_at_nothing(guard: object) -> None:
        """Stand in for who looks at all servers of its process: here are a thousand, of a node is one."""

    with mock.patch.object(rpc_server.FloodGuard, "run", look_at_nothing):
        async with asyncio.TaskGroup() as group:
            group.create_task(tell())
            for number in range(nodes):
                group.create_task(live(number))


class Fleet:
    """A control plane process, a process of simulated nodes, and so many apps."""

    def __init__(self, folder: Path, nodes: int, apps: int) -> None:
        self.stack = Stack(folder)
        self.size, self.apps = nodes, apps
        self.folder = folder
        self.nodes = Process(
            "nodes",
            [
                *("-m", "tests.bench.fleet", "--simulate", str(nodes), self.stack.address),
                *(str(apps), str(folder / "hosted")),
            ],
            folder / "nodes.log",
        )

    def cpu(self) -> float:
        """Return the CPU seconds that the control plane has used."""
        times = psutil.Process(self.stack.control_plane.pid).cpu_times()
        return times.user + times.system

    def pin(self) -> None:
        """Give the control plane one core, and its nodes another, where there are two."""
        if len(CORES) > 1:
            psutil.Process(self.stack.control_plane.pid).cpu_affinity(CORES[:1])
            psutil.Process(self.nodes.pid).cpu_affinity(CORES[1:])

    def memory(self) -> int:
        """Return the bytes that the control plane has in memory."""
        return int(psutil.Process(self.stack.control_plane.pid).memory_info().rss)

    def heard(self) -> int:
        """Return how many nodes a control plane hears, as they told a moment ago."""
        told = self.folder / "heard"
        return int(told.read_text() or 0) if told.exists() else 0

    def ready(self) -> int:
        """Return how many nodes are stored as ready: heard now, or when their control plane ended."""
        found, token = 0, ""
        while True:
            page = self.stack.fleet.ListNodes(
                fleet_pb2.ListNodesRequest(parent="environments/-", page_size=1000, page_token=token),
                timeout=60,
            )
            found += sum(node.state == fleet_pb2.Node.READY for node in page.nodes)
            token = page.next_page_token
            if not token:
                return found

    def running(self) -> int:
        """Return how many apps run, as the last page of a filtered list counts them."""
        found, token = 0, ""
        while True:
            page = self.stack.apps.ListApps(
                catalog.ListAppsRequest(filter="state=RUNNING", page_size=1000, page_token=token), timeout=60
            )
            found += len(page.apps)
            token = page.next_page_token
            if not token:
                return found

    def seed(self) -> None:
        """Have all apps there, and on the nodes, as if they had been for long; ends the control plane."""
        self.stack.control_plane.terminate()
        self.nodes.signal(signal.SIGUSR2)
        fleet_seed.fill(f"sqlite:///{self.folder / 'control-plane.db'}", self.size, self.apps)
        eventually((self.folder / "hosted").exists, "the nodes run the apps", WITHIN)

    def create(self, first: int, count: int) -> None:
        """Create more apps; each lives on the node that the control plane chooses."""

        def one(number: int) -> None:
            app = catalog.App(entrypoint=fleet_seed.ENTRYPOINT, database=fleet_seed.NOWHERE)
            self.stack.apps.CreateApp(
                catalog.CreateAppRequest(app_id=fleet_seed.app_id(number), app=app), timeout=60
            )

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(one, number) for number in range(first, first + count)]:
                done.result()

    def change(self, number: int) -> float:
        """Change one app and wait until its new generation serves; return the seconds."""
        app = catalog.App(name=f"apps/{fleet_seed.app_id(number)}")
        app.config["turn"] = time.monotonic()
        request = catalog.UpdateAppRequest(app=app)
        request.update_mask.paths.append("config")
        began = time.perf_counter()
        operation = self.stack.apps.UpdateApp(request, timeout=30)
        wait = operations_pb2.WaitOperationRequest(name=operation.name)
        wait.timeout.FromSeconds(60)
        assert self.stack.operations.WaitOperation(wait, timeout=90).done
        return time.perf_counter() - began

    def apps_on(self, node: str) -> list[str]:
        """Return the names of the apps that run on a node."""
        found: list[str] = []
        request = catalog.ListAppsRequest(page_size=1000)
        while True:
            page = self.stack.apps.ListApps(request, timeout=60)
            found += [app.name for app in page.apps if any(it.node == node for it in app.instances)]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    def runs_elsewhere(self, app: str, node: str) -> bool:
        """Tell whether an app is told to run, and on another node."""
        told = self.stack.apps.GetApp(catalog.GetAppRequest(name=app), timeout=60)
        return told.state == Instance.RUNNING and all(it.node != node for it in told.instances)

    def lose_a_node(self) -> tuple[int, float, float]:
        """Let a node die; return the number of its apps, the seconds from when it is called lost until all
        are told to run elsewhere, and those of CPU from its death on."""
        request = fleet_pb2.GetNodeRequest(name=VICTIM)
        apps = self.apps_on(VICTIM)
        spent = self.cpu()
        self.nodes.signal(signal.SIGUSR1)
        while self.stack.fleet.GetNode(request, timeout=60).lease_state != fleet_pb2.Node.EXPIRED:
            time.sleep(0.01)
        began = time.perf_counter()
        for app in apps:
            eventually(partial(self.runs_elsewhere, app, VICTIM), f"{app} runs elsewhere", WITHIN)
        return len(apps), time.perf_counter() - began, self.cpu() - spent

    def come_back(self) -> tuple[float, float, float, float]:
        """Start the control plane, which has ended; return the seconds until it answers and until all nodes
        are ready, and its CPU seconds until then and until all apps have been looked at."""
        began = time.perf_counter()
        self.stack.control_plane.start()
        self.pin()
        self.stack.wait_until_called()
        answers = time.perf_counter() - began
        self.wait_ready()
        back, joined = time.perf_counter() - began, self.cpu()
        self.come_to_rest()
        return answers, back, joined, self.cpu()

    def come_to_rest(self) -> None:
        """Wait until the control plane does no more than in the moment before."""
        last, end = 200.0, time.monotonic() + WITHIN
        while (share := idle_share(self, QUIET)) > 5 and share < 0.9 * last and time.monotonic() < end:
            last = max(share, 25.0)

    def start(self) -> None:
        self.stack.control_plane.start()
        self.stack.wait_until_called()
        self.nodes.start()
        self.pin()

    def wait_ready(self) -> float:
        """Wait until every node is ready; return the seconds."""
        began = time.perf_counter()
        eventually(lambda: self.heard() == self.size, f"{self.size} nodes are heard", WITHIN)
        eventually(lambda: self.ready() == self.size, f"{self.size} nodes are ready", WITHIN)
        return time.perf_counter() - began

    def end(self) -> None:
        self.stack.channel.close()
        for process in (self.nodes, self.stack.control_plane):
            process.clean_up()


@contextlib.contextmanager
def fleet(folder: Path, nodes: int, apps: int) -> Iterator[Fleet]:
    """Run a fleet with all its apps up."""
    one = Fleet(folder, nodes, apps)
    try:
        one.start()
        yield one
    finally:
        one.end()


def idle_share(one: Fleet, seconds: float) -> float:
    """Return the share of a core, in percent, that a fleet costs in which nothing happens."""
    before, began = one.cpu(), time.perf_counter()
    time.sleep(seconds)
    return 100 * (one.cpu() - before) / (time.perf_counter() - began)


def cost_of_changes(one: Fleet, count: int) -> tuple[float, float]:
    """Return the median seconds and the mean CPU seconds of one change."""
    idle = idle_share(one, 3.0) / 100
    before, began = one.cpu(), time.perf_counter()
    took = [one.change(number % one.apps) for number in range(count)]
    lasted = time.perf_counter() - began
    return statistics.median(took), max(0.0, one.cpu() - before - idle * lasted) / count


def decision(nodes: int) -> list[float]:
    """Return the CPU seconds of some decisions where an app goes among so many nodes, as in a pass."""
    environment = "environments/default"
    records = [
        fleet_pb2.Node(name=f"{environment}/nodes/node-{number:04d}", zone=f"zone-{number % 3}")
        for number in range(nodes)
    ]
    names = [node.name for node in records]
    loads: dict[str, Load] = dict.fromkeys(names, (100, 0))
    candidates, wish, found = Candidates(), Wish(environment), []
    for number in range(50):
        name = names[number % nodes]
        loads[name] = (loads[name][0] + 1, 0)
        before = time.process_time()
        seen = candidates.of(
            ((it, node, True) for it, node in zip(names, records, strict=True)), loads, Neighbours(), {}
        )
        assert choose(wish, seen).node
        found.append(time.process_time() - before)
    return found[5:]


def measure(quick: bool) -> list[Row]:
    """Return what a fleet costs at rest, in a change, and when the control plane comes back."""
    return measure_size(100, 2_000, 50) if quick else measure_size(1_000, 100_000, 200)


def measure_size(nodes: int, apps: int, changes: int) -> list[Row]:
    """Return the same of a fleet of such a size."""
    if len(CORES) > 1:
        psutil.Process().cpu_affinity(CORES[1:])
    rows: list[Row] = []

    def told(made: Row) -> None:
        print(f"{made.what}: {made.value:.4g} {made.unit}", file=sys.stderr, flush=True)
        rows.append(made)

    size = f"{nodes:,} nodes, {apps:,} apps"
    of_decisions = [1e3 * it for it in decision(1_000)]
    told(row("one decision among 1,000 nodes: CPU", of_decisions, "ms", target=at_most(1, "fleet")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with fleet(folder / "few", *FEW) as few, fleet(folder / "many", nodes, apps) as many:
            few.wait_ready()
            few.create(0, FEW[1])
            told(row(f"{size}: all nodes registered and ready", many.wait_ready(), "s"))
            told(row("… CPU of the control plane for that", many.cpu(), "s"))
            empty = many.memory()
            many.seed()
            answers, back, joined, resync = many.come_back()
            told(row("… every app on its node: start of the control plane → it answers", answers, "s"))
            told(row("… → all nodes ready", back, "s"))
            told(row("… its CPU for that", joined, "s"))
            told(row("… its CPU until all apps have been looked at", resync, "s"))
            told(row("… memory of it for each app", (many.memory() - empty) / 2**10 / apps, "KB"))
            before, began, more = many.cpu(), time.perf_counter(), apps // 50
            many.create(apps, more)
            eventually(lambda: many.running() == apps + more, "every app runs", WITHIN)
            told(
                row(
                    f"… {more:,} more apps created, placed, running",
                    more / (time.perf_counter() - began),
                    "/s",
                )
            )
            told(row("… CPU of the control plane for one of them", 1e3 * (many.cpu() - before) / more, "ms"))
            eventually(lambda: few.running() == FEW[1], "every app runs", WITHIN)
            many.come_to_rest()
            idle = idle_share(many, 10.0)
            told(row("… at rest: share of a core", idle, "%", target=at_most(20, "fleet")))
            told(row("… memory of the control plane (RSS)", many.memory() / 2**20, "MB"))
            pairs = [(cost_of_changes(few, changes), cost_of_changes(many, changes)) for _ in range(3)]
            moved, replaced, spent_on_it = many.lose_a_node()
            lost = f"… a node with {moved} apps is lost → all run elsewhere"
            told(row(lost, replaced, "s", target=at_most(1, "fleet")))
            told(row("… CPU of the control plane from its death on", spent_on_it, "s"))
            many.size -= 1
            many.stack.control_plane.kill()
            _, back, joined, resync = many.come_back()
            told(row("… control plane kill -9, start → all nodes ready", back, "s"))
            told(row("… its CPU until all apps have been looked at", resync, "s"))
            not_running = apps + more - many.running()
            told(row("… apps that do not run after it", not_running, "apps", target=at_most(0, "fleet")))
    for what, part in (("latency", 0), ("CPU of the control plane", 1)):
        small, large = ([1e3 * pair[side][part] for pair in pairs] for side in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(small, large, strict=True))
        told(
            row(f"one change with {size} against {FEW[0]} and {FEW[1]}: {what}", large, "ms",
                base=statistics.median(small), ratio=ratio, target=at_most(1.2, "control plane", "ratio"))
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer nodes and apps")
    parser.add_argument("--simulate", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--size", metavar="NODES,APPS", help="so many of both")
    options = parser.parse_args()
    if options.simulate:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        number, address, seeded, hosted = options.simulate
        asyncio.run(simulate(int(number), address, int(seeded), Path(hosted)))
    else:
        size = tuple(map(int, options.size.split(","))) if options.size else ()
        print(table(measure_size(*size, 100) if size else measure(options.quick)))
