"""Durable writes of the catalog's store: commands per second and microseconds of each part.

Run as `python -m tests.bench.store_writes [--quick]`. A command is what CreateApp and the follow-up
of the reconciler do, in rows and reads; clients wait for each answer before the next command.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from appsupervisor.catalog.v1.app_catalog_pb2 import App, AppEvent, OperationMetadata
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import (
    AppRecord,
    OperationRecord,
    PlacementRecord,
    RequestRecord,
    Role,
    Version,
)
from services.control_plane.store.sql_store import open_store
from services.rpc.process import settle_collector
from tests.bench.results import Row, at_most, quantile_row, row, table

DAY = 86_400_000_000
WRITERS = (1, 16, 64)


def spec(name: str) -> App:
    app = App(
        name=name,
        display_name="A shop of books",
        entrypoint="notes.app:create_app",
        environment="environments/default",
        domains=[f"{name.removeprefix('apps/')}.example.com"],
    )
    app.labels.update({"tier": "gold", "tenant": "t-1234"})
    app.config.update({"title": "Books", "currency": "EUR", "page_size": 20})
    app.env.update({"LANG": "en", "FEATURES": "search,cart"})
    return app


def create(name: str, request_id: str) -> Callable[[Transaction], AppRecord]:
    """What CreateApp does: three reads, five kinds of rows."""

    def command(tx: Transaction) -> AppRecord:
        assert tx.request(request_id) is None
        assert tx.environment("environments/default") is not None
        assert tx.app(name) is None
        uid = str(uuid.uuid4())
        record = AppRecord(
            name=name,
            uid=uid,
            spec=spec(name),
            status=App(state=Instance.PENDING),
            generation=1,
            target=Version(1, 1),
            create_time=tx.now,
            update_time=tx.now,
        )
        tx.put_app(record)
        operation = OperationRecord(
            name=f"operations/{tx.revision:016x}",
            app=name,
            app_uid=uid,
            verb="create",
            goal=record.target,
            metadata=OperationMetadata(target=name, verb="create", step="accepted", actor="bench"),
            create_time=tx.now,
            deadline=tx.now + 60_000_000,
        )
        tx.put_operation(operation)
        tx.add_event(
            name, AppEvent(type="Created", message="The app was created.", actor="bench", app_uid=uid)
        )
        tx.put_request(RequestRecord(request_id, "0" * 64, b"x" * 120, tx.now + DAY))
        return record

    return command


def accept(store: CatalogStore, name: str) -> Future[AppRecord]:
    """Create an app as the API does: the store looks the request up together with the others of its batch."""
    request_id = str(uuid.uuid4())
    return store.write(create(name, request_id), request_id=request_id)


def follow_up(name: str) -> Callable[[Transaction], None]:
    """What the reconciler does once the app runs: the app again, its operation again."""

    def command(tx: Transaction) -> None:
        record = tx.app(name)
        assert record is not None
        status = App(state=Instance.RUNNING, observed_generation=1, uri="http://127.0.0.1:8080")
        (operation,) = tx.open_operations(name)
        tx.put_app(replace(record, status=status))
        tx.put_placement(
            PlacementRecord(
                app=name,
                app_uid=record.uid,
                replica=0,
                generation=1,
                epoch=1,
                node="environments/default/nodes/node-1",
                role=Role.CURRENT,
                spec=record.spec.SerializeToString(),
                since=tx.now,
            )
        )
        ended = replace(operation, done=True, response=record.public, expire_time=tx.now + DAY)
        tx.put_operation(ended)

    return command


def drive(store: CatalogStore, writers: int, seconds: float, round_number: int) -> tuple[float, list[float]]:
    """Return CreateApp commands per second (each followed up once) and the latency of each."""
    latencies: list[list[float]] = [[] for _ in range(writers)]
    begin = time.perf_counter()
    end = begin + seconds

    def client(number: int) -> None:
        count = 0
        while time.perf_counter() < end:
            name = f"apps/a{round_number}-{writers}-{number}-{count}"
            count += 1
            started = time.perf_counter()
            accept(store, name).result()
            latencies[number].append(time.perf_counter() - started)
            store.write(follow_up(name))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.write(lambda tx: None).result()
    elapsed = time.perf_counter() - begin
    done = [latency for of_client in latencies for latency in of_client]
    return len(done) / elapsed, sorted(done)


def measure(quick: bool) -> list[Row]:
    """Return the rates of durable commands and the time to open a full store."""
    rounds, seconds = (1, 1.0) if quick else (3, 2.0)
    with tempfile.TemporaryDirectory() as directory:
        return writes(Path(directory), rounds, seconds) + loading(
            Path(directory), 20_000 if quick else 50_000
        )


def writes(directory: Path, rounds: int, seconds: float) -> list[Row]:
    """Create and follow up from several clients at once, durably (WAL, synchronous=FULL)."""
    store = open_store(f"sqlite:///{directory}/writes.db")
    settle_collector()  # as the control plane does, once it is up
    rows = []
    try:
        for writers in WRITERS:
            results = [drive(store, writers, seconds, number) for number in range(rounds)]
            latencies = [latency for result in results for latency in result[1]]
            what = f"store: durable create and follow-up, {writers} writers"
            rows.append(row(what, [result[0] for result in results], "/s"))
            rows.append(
                quantile_row(f"{what}, p99", latencies, 0.99, "ms", scale=1e3)
            )  # fmt: skip
    finally:
        store.close()
    return rows


def loading(directory: Path, apps: int) -> list[Row]:
    """Fill a store and open it again."""
    url = f"sqlite:///{directory}/loading.db"
    store = open_store(url)
    begin = time.perf_counter()
    for start in range(0, apps, 5_000):
        futures = [accept(store, f"apps/a{number}") for number in range(start, min(apps, start + 5_000))]
        for future in futures:
            future.result()
    filled = apps / (time.perf_counter() - begin)
    store.close()
    begin = time.perf_counter()
    store = open_store(url)
    opened = time.perf_counter() - begin
    store.close()
    return [
        row(f"store: creates, 5,000 at a time, {apps:,} in all", filled, "/s"),
        row(f"store: open with {apps:,} apps and as many operations", opened, "s",
            target=at_most(10, "control plane")),
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    print(table(measure(parser.parse_args().quick)))
