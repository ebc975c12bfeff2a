"""The leader of two control planes dies, stands still, or is cut from the database, while clients command the
other one: how long its commands pause, when another leads, and what became of apps and operations.

Run as `python -m tests.bench.leaders [--quick]`, as root on Linux: each program has a network namespace.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.longrunning import operations_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec
from tests.bench.results import Row, at_most, row, table
from tests.chaos.faults import FAULTS, last
from tests.chaos.fleet import TERM, Fleet
from tests.chaos.network import PROGRAMS
from tests.e2e.stack import eventually
from tests.e2e.traffic import reason_of

STRIKES = {
    "kill -9 of the leader": "leader killed",
    "SIGSTOP of the leader": "leader stands still",
    "the leader is cut from PostgreSQL": "leader cut from PostgreSQL",
}
CALM, LASTS = 3.0, 10.0
"""Seconds of commands before, and for which a fault lasts."""
COMMANDED = 5
"""Apps that are restarted meanwhile."""


@dataclass
class Commands:
    """Commands one control plane without end, one after another: every fifth restarts an app that runs."""

    fleet: Fleet
    plane: str
    prefix: str
    sent: list[float] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    operations: list[operations_pb2.Operation] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Commands:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def _run(self) -> None:
        stub = AppCatalogStub(self.fleet.channel(self.plane))
        database = Database(no_database=Database.NoDatabase())
        stopped = catalog.App(
            entrypoint="rows:create_app", desired_state=catalog.App.STOPPED, database=database
        )
        number = 0
        while not self._ended.wait(0.005):
            number += 1
            request_id = f"{self.prefix}-{number}"
            self.sent.append(time.monotonic())
            try:
                if number % 5:
                    create = catalog.CreateAppRequest(app_id=request_id, app=stopped, request_id=request_id)
                    self.operations.append(stub.CreateApp(create, timeout=30))
                else:
                    name = f"apps/commanded-{number // 5 % COMMANDED}"
                    restart = catalog.RestartAppRequest(name=name, request_id=request_id)
                    self.operations.append(stub.RestartApp(restart, timeout=30))
            except grpc.RpcError as refused:
                self.refused.append(f"{refused.code()} {refused.details()}")
            else:
                self.acknowledged.append(time.monotonic())

    def longest(self, begin: float, end: float) -> float:
        """Return the longest time without an acknowledged command between two moments, in seconds."""
        within = [begin, *(at for at in self.acknowledged if begin < at < end), end]
        return max(later - earlier for earlier, later in itertools.pairwise(within))


def instances(fleet: Fleet, apps: list[str]) -> dict[str, tuple[str, int]]:
    """Return each app's only instance and when it was made, by app."""
    found = {}
    for app in apps:
        [one] = fleet.app(app).instances
        found[app] = one.name, one.create_time.ToNanoseconds()
    return found


def struck(fleet: Fleet, what: str, fault: str, apps: list[str]) -> list[Row]:
    """Return what one fault of the leader has cost."""
    leader = fleet.leader()
    other = next(name for name in fleet.planes if name != leader)
    term = max(int(it) for it in TERM.findall(fleet.planes[leader].text()))
    before = instances(fleet, apps)
    with Commands(fleet, other, fault.replace(" ", "-").lower()) as commands:
        eventually(lambda: len(commands.acknowledged) > 10, f"commands are accepted: {commands.refused[:3]}")
        calm = time.monotonic()
        last(CALM)
        with FAULTS[fault](fleet, "node-1"):
            began = time.monotonic()
            while not any(int(it) > term for it in TERM.findall(fleet.planes[other].text())):
                time.sleep(0.005)
                assert time.monotonic() < began + 60, "nobody else leads"
            led = time.monotonic() - began
            last(LASTS)
        last(LASTS)  # the old one is back
        paused = commands.longest(began, time.monotonic())
    if commands.refused:
        print(f"{what}: {collections.Counter(commands.refused).most_common(3)}")
    lost = 0
    for operation in commands.operations:
        done = fleet.wait(operation, 120)
        # Of an app that is restarted again and again only the newest restart is seen to its end.
        failed = done.WhichOneof("result") != "response"
        if failed and reason_of(done) != "OPERATION_SUPERSEDED":
            print(f"{what}: {done.name}: {reason_of(done)} {done.error.message}")
            lost += 1
    eventually(lambda: all(fleet.home(app) for app in apps), "all apps are told to run")
    touched = sum(before[app] != after for app, after in instances(fleet, apps).items())
    # One that stands still in a write keeps the lock for 3 s.
    pause = at_most(500, "fleet") if "kill" in what else None
    return [
        row(f"{what}: another leads after", led, "s", target=at_most(6, "fleet")),
        row("… longest pause between commands at the other", paused * 1e3, "ms", target=pause,
            base=commands.longest(calm, began) * 1e3),
        row(f"… refused, of {len(commands.sent):,} commands at the other", len(commands.refused), "commands",
            target=at_most(0, "fleet")),
        row("… operations lost or failed", lost, "operations", target=at_most(0, "fleet")),
        row(f"… restarted, of {len(apps)} apps, the old one's return included", touched, "apps",
            target=at_most(0, "fleet")),
    ]  # fmt: skip


def measure(quick: bool) -> list[Row]:
    """Return what faults of the leader have cost."""
    if not sys.platform.startswith("linux") or os.geteuid() or not all(map(shutil.which, PROGRAMS)):
        print(f"Change of leader: not measured, it takes root on Linux and {', '.join(PROGRAMS)}")
        return []
    count = 20 if quick else 100
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="leaders-") as folder, ExitStack() as resources:
        fleet = Fleet(Path(folder), resources)
        fleet.start()
        database = Database(no_database=Database.NoDatabase())
        apps = [f"app-{number}" for number in range(count)]
        for app in (*apps, *(f"commanded-{number}" for number in range(COMMANDED))):
            # Half of them stop with their lease.
            strict = InstanceSpec.CONSISTENT if app.endswith(("1", "3", "5", "7", "9")) else 0
            fleet.create(app, database=database, isolation=InstanceSpec.SHARED, availability=strict)
        for what, fault in STRIKES.items():
            rows += struck(fleet, what, fault, apps)
            fleet.is_whole()
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer apps")
    print(table(measure(parser.parse_args().quick)))
