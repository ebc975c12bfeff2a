"""A control plane with very many stopped apps: its start, memory, reads, changes, watch and end.

Run as `python -m tests.bench.many_apps [--apps 1000000] [--quick]`; beside it one with 5,000 apps.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.store.sql.rows import app_values
from services.control_plane.store.sql_store import open_store
from tests.bench.catalog_size import put
from tests.bench.results import Row, at_most, quantile, row, table
from tests.e2e.stack import ROOT, Stack

FEW = 5_000
LOGGED = 200_000
"""Changes that the change log tells of."""
PAGE = 1_000
SAMPLES = 100


def seed(path: Path, apps: int) -> None:
    """Make a catalog of apps as `catalog_size` has them, past the store: copies of one row."""
    store = open_store(f"sqlite:///{path}")
    store.write(put(0)).result()
    (record,) = store.mirror.apps.values()
    newest = store.mirror.apps.revision
    store.close()
    spec = normalize_app(record.spec)
    spec.desired_state = catalog.App.STOPPED
    record = replace(record, spec=spec)
    # In the order of the tables: an app before what is its.
    rows: dict[str, list[Any]] = {
        "apps": list(app_values(record).values()),
        "app_domains": [record.spec.domains[0], record.name],
        "changes": [newest, "app", record.name, False, record.create_time],
    }
    has_revision = {"apps": -1, "changes": 0}
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        # Never started: of those placed on a node each is looked at when that is heard, or is not.
        connection.execute("DELETE FROM placements")
        connection.execute("DELETE FROM apps")
        connection.execute("DELETE FROM changes")
        for name, values in rows.items():
            first = max(0, apps - LOGGED) if name == "changes" else 0
            copies = (_copy(values, number, newest, has_revision.get(name)) for number in range(first, apps))
            marks = ", ".join("?" * len(values))
            connection.executemany(f"INSERT OR REPLACE INTO {name} VALUES ({marks})", copies)
        newest += apps
        connection.execute(
            "UPDATE meta SET revision = ?, oldest_revision = ?", (newest, max(0, newest - LOGGED - 1))
        )
    connection.close()


def _copy(values: list[Any], number: int, newest: int, revision: int | None) -> list[Any]:
    """Return a row of the first app as that of another one: all ids are as long as its, so that bytes fit."""
    app, uid = f"app-{number:07d}", f"{number:08x}-0000"
    copy = list(values)
    for index, value in enumerate(copy):
        if isinstance(value, str):
            copy[index] = value.replace("app-0000000", app).replace("00000000-0000", uid)
        elif isinstance(value, bytes):
            copy[index] = value.replace(b"app-0000000", app.encode())
    if revision is not None:
        copy[revision] = newest + 1 + number
    return copy


class Side:
    """One control plane under test, and what is asked of it."""

    def __init__(self, folder: Path, apps: int) -> None:
        if not folder.exists():
            folder.mkdir(parents=True)
            command = [sys.executable, "-m", "tests.bench.many_apps", "--seed", str(apps), str(folder)]
            subprocess.run(command, cwd=ROOT, check=True)
        self.apps = apps
        self.stack = Stack(folder)
        self.numbers = itertools.count()

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.stack.control_plane.pid)

    def cpu(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def name(self, number: int) -> str:
        return f"apps/app-{number:07d}"

    def start(self) -> float:
        begin = time.perf_counter()
        self.stack.control_plane.start()
        request = catalog.GetAppRequest(name=self.name(5))
        self.stack.apps.GetApp(request, timeout=900, wait_for_ready=True)
        return time.perf_counter() - begin

    def timed(self, call: Callable[[int], object], count: int = SAMPLES) -> tuple[float, float]:
        """Return the median seconds and the CPU seconds of a call."""
        before, took = self.cpu(), []
        for number in range(count):
            begin = time.perf_counter()
            call(number)
            took.append(time.perf_counter() - begin)
        return statistics.median(took), (self.cpu() - before) / count

    def get(self, number: int) -> object:
        return self.stack.apps.GetApp(catalog.GetAppRequest(name=self.name(number * 7919 % self.apps)))

    def first_page(self, _: int = 0) -> catalog.ListAppsResponse:
        return self.stack.apps.ListApps(catalog.ListAppsRequest(page_size=50))

    def filtered(self, _: int = 0) -> object:
        request = catalog.ListAppsRequest(page_size=50, filter='labels.tier = "gold"')
        return self.stack.apps.ListApps(request)

    def pages(self) -> Iterator[catalog.ListAppsResponse]:
        token = ""
        while True:
            request = catalog.ListAppsRequest(page_size=PAGE, page_token=token)
            page = self.stack.apps.ListApps(request, timeout=30)
            yield page
            token = page.next_page_token
            if not token:
                return

    def update(self, number: int) -> object:
        app = catalog.App(name=self.name(number * 7919 % self.apps))
        app.labels["turn"] = f"t{time.time_ns()}"  # never as it was: that would change nothing
        request = catalog.UpdateAppRequest(app=app)
        request.update_mask.paths.append("labels")
        return self.stack.apps.UpdateApp(request, timeout=30)

    def create(self, _: int) -> object:
        app = catalog.App(entrypoint="notes:create_app", desired_state=catalog.App.STOPPED)
        request = catalog.CreateAppRequest(app_id=f"new-{next(self.numbers)}", app=app)
        return self.stack.apps.CreateApp(request, timeout=30)

    def end(self) -> float:
        begin = time.perf_counter()
        self.stack.control_plane.signal(signal.SIGTERM)
        self.stack.control_plane.terminate(120)
        return time.perf_counter() - begin


def watch_all(side: Side) -> dict[str, float]:
    """Read the snapshot of one watch, while another client asks for apps; return what both took."""
    delays: list[float] = []
    done = threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(side.stack.address) as channel:
            get = AppCatalogStub(channel).GetApp
            number = 0
            while not done.is_set():
                number += 1
                begin = time.perf_counter()
                get(catalog.GetAppRequest(name=side.name(number * 7919 % side.apps)), timeout=30)
                delays.append(time.perf_counter() - begin)
                time.sleep(0.005)

    asking = threading.Thread(target=ask)
    before, memory = side.cpu(), side.process.memory_info().rss
    asking.start()
    begin, told = time.perf_counter(), 0
    with grpc.insecure_channel(side.stack.address) as channel:
        stream = AppCatalogStub(channel).WatchApps(catalog.WatchAppsRequest(), timeout=1200)
        for message in stream:
            if message.type == catalog.WatchAppsResponse.SYNCED:
                break
            told += 1
        took = time.perf_counter() - begin
        side.update(1)
        changed = time.perf_counter()
        next(stream)
        seen = time.perf_counter() - changed
        stream.cancel()
    done.set()
    asking.join()
    assert told >= side.apps, told
    return {
        "took": took, "cpu": side.cpu() - before, "p99": quantile(delays, 0.99), "worst": max(delays),
        "seen": seen, "memory": side.process.memory_info().rss - memory,
    }  # fmt: skip


def measure_all(apps: int) -> list[Row]:
    """Return the rows of a control plane with so many apps."""
    with tempfile.TemporaryDirectory() as folder:
        many, few = Side(Path(folder) / "many", apps), Side(Path(folder) / "few", FEW)
        try:
            return _rows(many, few)
        finally:
            for side in (many, few):
                side.stack.channel.close()
                side.stack.control_plane.clean_up()


def _rows(many: Side, few: Side) -> list[Row]:
    what = f"control plane, {many.apps:,} stopped apps"
    size = (many.stack.folder / "control-plane.db").stat().st_size
    few.start()
    empty = few.process.memory_info().rss
    started = many.start()
    memory = many.process.memory_info().rss
    rows = [
        row(f"{what}: start → first GetApp", started, "s", target=at_most(60, "fleet")),
        row("… CPU of that", many.cpu(), "s"),
        row("… memory of an app (RSS beyond one with 5,000)", (memory - empty) / (many.apps - few.apps) / 1e3,
            "KB", target=at_most(3, "fleet")),
        row("… its file, for an app", size / many.apps / 1e3, "KB"),
    ]  # fmt: skip
    print(table(rows), flush=True)
    calls: list[tuple[str, Callable[[Side], Callable[[int], object]]]] = [
        ("GetApp", lambda side: side.get),
        ("ListApps, first 50", lambda side: side.first_page),
        ("ListApps, first 50 of a filter", lambda side: side.filtered),
        ("UpdateApp", lambda side: side.update),
        ("CreateApp, stopped", lambda side: side.create),
    ]
    for kind, call in calls:
        call(few)(0), call(many)(0)
        pairs = [(few.timed(call(few)), many.timed(call(many))) for _ in range(3)]
        for part, label in ((0, "latency"), (1, "CPU")):
            base = statistics.median(pair[0][part] for pair in pairs) * 1e3
            values = [pair[1][part] * 1e3 for pair in pairs]
            ratio = statistics.median(pair[1][part] / pair[0][part] for pair in pairs)
            target = at_most(1.2, "fleet", "ratio") if kind in ("UpdateApp", "CreateApp, stopped") else None
            rows.append(
                row(f"{kind}: {label} against {few.apps:,} apps", values, "ms", base=base, ratio=ratio,
                    target=target)
            )  # fmt: skip
    before = many.cpu()
    time.sleep(10)
    rows.append(row("at rest: share of a core", (many.cpu() - before) * 10, "%"))
    print(table(rows), flush=True)
    begin = time.perf_counter()
    told = sum(len(page.apps) for page in many.pages())
    rows.append(row(f"all {told:,} apps in pages of {PAGE:,}", time.perf_counter() - begin, "s"))
    watched = watch_all(many)
    rows += [
        row("WatchApps, whole snapshot to one reader", watched["took"], "s"),
        row("… CPU of the control plane", watched["cpu"], "s"),
        row("… GetApp of another client meanwhile, p99", watched["p99"] * 1e3, "ms"),
        row("… worst", watched["worst"] * 1e3, "ms"),
        row("… memory afterwards", watched["memory"] / 2**20, "MB"),
        row("… a change after it → told", watched["seen"] * 1e3, "ms"),
    ]
    rows.append(row("SIGTERM → end", many.end(), "s"))
    rows.append(row("… start again → first GetApp", many.start(), "s", target=at_most(60, "fleet")))
    return rows


def measure(quick: bool) -> list[Row]:
    """Return the rows; a million apps are for `--apps`."""
    return measure_all(20_000 if quick else 200_000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--apps", type=int, help="so many apps; 1,000,000 need 6 GB of memory and 2 of disk")
    parser.add_argument("--quick", action="store_true", help="fewer apps")
    parser.add_argument("--seed", nargs=2, metavar=("APPS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seed:
        seed(Path(options.seed[1]) / "control-plane.db", int(options.seed[0]))
    elif options.apps:
        print(table(measure_all(options.apps)))
    else:
        print(table(measure(options.quick)))
