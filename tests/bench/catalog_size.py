"""Memory and start of a control plane's catalog by apps: stopped ones, each placed.

Run as `python -m tests.bench.catalog_size [--quick]`. A process of its own opens it and reads all of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance
from services.control_plane.placement.assignment import pinned
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version
from services.control_plane.store.sql_store import open_store
from tests.bench.results import Row, at_most, row, table
from tests.bench.store_writes import spec

ROOT = Path(__file__).resolve().parents[2]
BATCH = 2_000
NODE = "environments/default/nodes/node-1"


def put(number: int) -> Callable[[Transaction], None]:
    """Store an app with its placement, of 400 and 200 bytes when serialized."""

    def command(tx: Transaction) -> None:
        name = f"apps/app-{number:07d}"
        uid = f"{number:08x}-0000-4000-8000-000000000000"
        status = App(state=Instance.STOPPED, observed_generation=1, uri=f"http://{name[5:]}.localhost:8080")
        for kind, reason in (("Ready", "Stopped"), ("Scheduled", "Placed"), ("Updated", "UpToDate")):
            condition = status.conditions.add(type=kind, status=Condition.MET, reason=reason)
            condition.last_transition_time.FromMicroseconds(tx.now)
        app = AppRecord(name, uid, spec(name), status, 1, Version(1, 1), tx.now, tx.now)
        tx.put_app(app)
        tx.put_placement(
            PlacementRecord(
                app=name, app_uid=uid, replica=0, generation=1, epoch=1, node=NODE, role=Role.CURRENT,
                spec=pinned(app.spec), why="It is the node with the fewest apps.", since=tx.now,
            )
        )  # fmt: skip

    return command


def fill(url: str, apps: int) -> None:
    """Make a catalog of that many apps."""
    store = open_store(url)
    for start in range(0, apps, BATCH):
        for future in [store.write(put(number)) for number in range(start, min(apps, start + BATCH))]:
            future.result()
    store.close()


def look(url: str) -> dict[str, float]:
    """Open the catalog, read all of it, and return what each took: bytes and seconds."""
    process = psutil.Process()
    gc.collect()
    before, start = process.memory_info().rss, time.perf_counter()
    store = open_store(url)
    opened = time.perf_counter() - start
    gc.collect()
    loaded, start = process.memory_info().rss, time.perf_counter()
    for record in store.mirror.apps.values():
        assert record.public.name == record.name
        assert record.list_item
    scanned = time.perf_counter() - start
    gc.collect()
    read = process.memory_info().rss
    store.close()
    return {"opened": opened, "scanned": scanned, "loaded": loaded - before, "read": read - before}


def measure(quick: bool) -> list[Row]:
    """Return the memory of an app in the mirror, before and after all were read, and the time to open."""
    apps = 20_000 if quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/catalog.db"
        for what in ("--fill", "--look"):
            command = [sys.executable, "-m", "tests.bench.catalog_size", what, url, "--apps", str(apps)]
            output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = json.loads(output)
    target = at_most(3, "fleet")
    return [
        row(f"catalog of {apps:,} apps: open", found["opened"], "s", target=at_most(10, "control plane")),
        row("catalog: memory of an app", found["loaded"] / apps / 1e3, "KB", target=target),
        row("catalog: memory of an app once all were read", found["read"] / apps / 1e3, "KB", target=target),
        row("catalog: read one that was not read lately", found["scanned"] / apps * 1e6, "µs"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer apps")
    parser.add_argument("--fill", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--look", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--apps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        fill(options.fill, options.apps)
    elif options.look:
        print(json.dumps(look(options.look)))
    else:
        print(table(measure(options.quick)))
