"""Data that belongs to no app, inside transactions: kept of a deleted app, given to a new one, forgotten.

What the catalog says of an owner is said here, in the transaction that makes it so; nodes follow.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App, AppEvent
from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.runtime.v1.runtime_environment_pb2 import DataDirectory
from services.control_plane.operations import operations
from services.control_plane.placement.assignment import pinned
from services.control_plane.rules.names import is_system_id, retained_data_name
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import (
    AppRecord,
    PlacementRecord,
    RetainedDataRecord,
    Role,
    timestamp,
)
from services.rpc.errors import SupervisorError

SILENT = "Its node cannot be heard; it is done when it can."


def keep(tx: Transaction, app: AppRecord, placement: PlacementRecord) -> None:
    """Say what a deleted app leaves on the node of a placement that has ended."""
    data = RetainedData(
        name=retained_data_name(placement.node, app.uid),
        uid=app.uid,
        app=app.name,
        app_uid=app.uid,
        state=RetainedData.RETAINED,
        database=app.spec.database,
        entrypoint=app.spec.entrypoint,
        delete_time=timestamp(tx.now),
    )
    known = tx.retained(data.name)
    if known is None or (placement.has_data and not known.is_certain):
        tx.put_retained(RetainedDataRecord(data, generation=int(placement.has_data)))


def give(tx: Transaction, record: RetainedDataRecord, app: AppRecord) -> None:
    """Give data to an app that has just been put, and place the app where the data is."""
    tx.put_retained(_moved(record, RetainedData.ATTACHING, attaching_app=app.name))
    tx.put_placement(
        PlacementRecord(
            app=app.name,
            app_uid=app.uid,
            replica=0,
            generation=app.target.generation,
            epoch=app.target.epoch,
            node=sys.intern(record.node),
            role=Role.INCOMING,
            spec=pinned(app.spec),
            why=f"On {record.node}: the data that it begins with is there.",
            has_data=app.spec.database.WhichOneof("kind") == "sqlite",
            since=tx.now,
        )
    )


def taken_over(tx: Transaction, app: AppRecord) -> AppRecord:
    """Forget data that its node has handed over to its new app; return the app."""
    tx.delete_retained(app.status.retained_data)
    return tx.put_app(_without_claim(app))


def given_back(tx: Transaction, app: AppRecord, state: RetainedData.State.ValueType, why: str) -> AppRecord:
    """Let data be nobody's again that its app could not be given; return the app, which is not stored."""
    record = tx.retained(app.status.retained_data)
    if record is not None and state == RetainedData.MISSING and not record.is_certain:
        tx.delete_retained(record.name)  # the app before was deleted before it had left anything
        for placement in tx.placements_of(app.name):  # so this one has nothing either, and keeps nothing
            tx.put_placement(replace(placement, has_data=False))
    elif record is not None:
        tx.put_retained(_moved(record, state, why))
    return _without_claim(app)


def doom(tx: Transaction, record: RetainedDataRecord, why: str) -> RetainedDataRecord:
    """Have data removed by its node; `why` it isn't at once, if that is known."""
    return tx.put_retained(_moved(record, RetainedData.PURGING, why))


def hindered(tx: Transaction, name: str, why: str) -> None:
    """Say what keeps data from being removed."""
    record = tx.retained(name)
    if record is not None and record.data.state == RetainedData.PURGING and record.data.state_reason != why:
        data = _copy(record.data)
        data.state_reason = why
        tx.put_retained(replace(record, data=data))


def purged(tx: Transaction, name: str) -> None:
    """Forget data that its node has removed, and end the operations that waited for it."""
    record = tx.retained(name)
    if record is None or record.data.state != RetainedData.PURGING:
        return
    tx.delete_retained(name)
    # Why it took its time holds no more.
    done = replace(record, data=_copy(record.data))
    done.data.ClearField("state_reason")
    for operation in tx.open_operations(name, ("purge",)):
        operations.end(tx, operation, None, response=done.public)
    event = AppEvent(type="DataPurged", actor="system", app_uid=record.data.app_uid)
    event.message = f"What it had left on {record.node} is removed."
    tx.add_event(record.data.app, event)


def observed(
    tx: Transaction, node: str, found: Iterable[DataDirectory], gone: Collection[tuple[str, int]]
) -> None:
    """Store what a node has told: directories of no app, and data, as of a revision, that it doesn't have."""
    for directory in found:
        name = retained_data_name(node, directory.app_uid)
        record, app = tx.retained(name), directory.name.partition("/dataDirectories/")[0]
        owner = tx.app(app)
        if record is not None:
            told = _told(record, directory, tx.now)
            if told.data != record.data or told.generation != record.generation:
                tx.put_retained(told)
        elif is_system_id(directory.app_uid) and (owner is None or owner.uid != directory.app_uid):
            tx.put_retained(_found(name, app, directory, tx.now))
    for name, revision in gone:
        record = tx.retained(name)
        if record is None or record.revision != revision or record.data.state != RetainedData.RETAINED:
            continue
        if not record.is_certain:
            tx.delete_retained(name)  # the app was deleted before it had left anything
        else:
            tx.put_retained(_moved(record, RetainedData.MISSING, "Its node was asked, and does not have it."))


def forget_node(tx: Transaction, node: str) -> None:
    """Forget what is retained on a node that is forgotten itself."""
    for record in tx.retained_on(node):
        tx.delete_retained(record.name)
        lost = SupervisorError("NODE_NOT_FOUND", f"{node} is forgotten, with its data.", resource=node)
        for operation in tx.open_operations(record.name, ("purge",)):
            operations.end(tx, operation, lost, step="failed")


def _moved(
    record: RetainedDataRecord, state: RetainedData.State.ValueType, why: str = "", attaching_app: str = ""
) -> RetainedDataRecord:
    data = _copy(record.data)
    data.state, data.state_reason, data.attaching_app = state, why, attaching_app
    return replace(record, data=data, generation=record.generation + (1 if record.is_certain else -1))


def _told(record: RetainedDataRecord, directory: DataDirectory, now: int) -> RetainedDataRecord:
    data = _copy(record.data)
    generation = record.generation if record.is_certain else 1 - record.generation
    if data.state == RetainedData.MISSING:
        data.state, data.state_reason = RetainedData.RETAINED, "It is there again."
        generation += 1
    if directory.size_bytes != data.size_bytes or not data.HasField("observe_time"):
        data.size_bytes = directory.size_bytes
        data.observe_time.FromMicroseconds(now)
    return replace(record, data=data, generation=generation)


def _found(name: str, app: str, directory: DataDirectory, now: int) -> RetainedDataRecord:
    data = RetainedData(
        name=name,
        uid=directory.app_uid,
        app=app,
        app_uid=directory.app_uid,
        state=RetainedData.RETAINED,
        state_reason="It was found on its node; the catalog did not know of it.",
        size_bytes=directory.size_bytes,
        observe_time=timestamp(now),
    )
    if directory.has_database:
        data.database.sqlite.SetInParent()
    return RetainedDataRecord(data)


def _without_claim(app: AppRecord) -> AppRecord:
    status = App()
    status.CopyFrom(app.status)
    status.ClearField("retained_data")
    return replace(app, status=status)


def _copy(data: RetainedData) -> RetainedData:
    copy = RetainedData()
    copy.CopyFrom(data)
    return copy
