"""The control plane with a full catalog: killed and started again, and what one change costs.

Run as `python -m tests.bench.restart [--quick]`. A node of a few apps hangs on it and must not be touched.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from tests.bench.catalog_server import fill
from tests.bench.end_to_end import BENCH_APPS
from tests.bench.results import Row, at_most, row, table
from tests.e2e.stack import ROOT, Stack, eventually

LIVE = 5
FEW = 100


def fill_apart(apps: int, folder: Path) -> None:
    """Fill the catalog's database in a process of its own, whose memory goes with it."""
    command = [sys.executable, "-m", "tests.bench.restart", "--fill", str(apps), str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)


def cost_of_changes(stack: Stack, count: int) -> tuple[float, float]:
    """Change one app so many times, one after the other; return median seconds, CPU seconds of each."""
    process = psutil.Process(stack.control_plane.pid)
    took = []
    before = process.cpu_times()
    for number in range(count):
        app = catalog.App(name="apps/app-000007")
        app.labels["turn"] = f"t{time.monotonic_ns()}-{number}"
        request = catalog.UpdateAppRequest(app=app)
        request.update_mask.paths.append("labels")
        start = time.perf_counter()
        stack.apps.UpdateApp(request, timeout=30)
        took.append(time.perf_counter() - start)
    eventually(lambda: not stack.get("app-000007").reconciling, "the last change is carried out")
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return statistics.median(took), spent / count


def lives(stack: Stack) -> list[tuple[str, float]]:
    """Return which instances run, and since when."""
    apps = [stack.get(f"live-{number}") for number in range(LIVE)]
    return [(one.name, one.ready_time.ToNanoseconds() / 1e9) for app in apps for one in app.instances]


def measure(quick: bool) -> list[Row]:
    """Return the times from start to serving, and the cost of a change with many apps beside few."""
    many, rounds, changes = (20_000, 3, 100) if quick else (100_000, 3, 300)
    with tempfile.TemporaryDirectory() as folder:
        few_stack, stack = (Stack(Path(folder) / name, app_dirs=(BENCH_APPS,)) for name in ("few", "many"))
        fill_apart(FEW, few_stack.folder)
        fill_apart(many, stack.folder)
        try:
            few_stack.control_plane.start()
            few_stack.wait_until_called()
            stack.start()
            for number in range(LIVE):
                stack.create(f"live-{number}", "bench_apps:small")
            before = lives(stack)
            starts = []
            for _ in range(rounds):
                stack.control_plane.kill()
                start = time.perf_counter()
                stack.control_plane.start()
                request = catalog.GetAppRequest(name="apps/app-000005")
                stack.apps.GetApp(request, timeout=60, wait_for_ready=True)
                starts.append(time.perf_counter() - start)
                eventually(lambda: lives(stack) == before, "the node's apps are told as they were")
            untouched = lives(stack) == before
            cost_of_changes(few_stack, 20), cost_of_changes(stack, 20)
            pairs = [(cost_of_changes(few_stack, changes), cost_of_changes(stack, changes)) for _ in range(3)]
            memory = psutil.Process(stack.control_plane.pid).memory_info().rss
        finally:
            for one in (few_stack, stack):
                one.channel.close()
                for process in (*one.nodes.values(), one.control_plane):
                    process.clean_up()
    rows = [
        row(f"control plane, {many:,} apps: kill -9, start → first GetApp", starts, "s",
            target=at_most(10, "control plane")),
        row("… apps of its node restarted by that", 0 if untouched else LIVE, "apps",
            target=at_most(0, "control plane")),
        row(f"… memory with {many:,} apps (RSS)", memory / 2**20, "MB"),
    ]  # fmt: skip
    for what, part in (("latency", 0), ("CPU of the control plane", 1)):
        few, much = ([1e3 * pair[side][part] for pair in pairs] for side in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(few, much, strict=True))
        rows.append(
            row(f"one change with {many:,} apps against {FEW}: {what}", much, "ms",
                base=statistics.median(few), ratio=ratio, target=at_most(1.2, "control plane", "ratio"))
        )  # fmt: skip
    return rows


def fill_here(apps: int, folder: Path) -> None:
    from services.control_plane.store.sql_store import open_store

    store = open_store(f"sqlite:///{folder / 'control-plane.db'}")
    fill(store, apps)
    store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer apps")
    parser.add_argument("--fill", nargs=2, metavar=("APPS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        fill_here(int(options.fill[0]), Path(options.fill[1]))
    else:
        print(table(measure(options.quick)))
