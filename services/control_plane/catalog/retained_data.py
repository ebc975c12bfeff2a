"""The commands on retained data, and the questions about it; the mirror answers those."""

from __future__ import annotations

import time
from itertools import takewhile

from google.longrunning.operations_pb2 import Operation

from appsupervisor.catalog.v1 import retained_data_pb2 as pb
from appsupervisor.catalog.v1.app_catalog_pb2 import App, AppEvent
from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.control_plane.catalog import retention
from services.control_plane.catalog.changes import checked_spec, create_app, defaults_of, only_shown
from services.control_plane.catalog.idempotency import execute
from services.control_plane.catalog.pages import page_end, page_start, request_digest
from services.control_plane.catalog.scans import Scans
from services.control_plane.operations import operations
from services.control_plane.rules.etags import check_etag
from services.control_plane.rules.filters import compile_retained_filter
from services.control_plane.rules.names import (
    WILDCARD,
    app_name,
    parse_node_name,
    parse_retained_data_name,
    validate_id,
)
from services.control_plane.rules.sizes import check_sizes
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import OperationRecord, RetainedDataRecord
from services.rpc.errors import SupervisorError, Violation
from services.rpc.pipeline.call import Caller


class RetainedDataService:
    """Lists retained data, creates apps on it, and has it removed."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self._feed = store.mirror.retained
        self._scans = Scans()

    def get(self, request: pb.GetRetainedDataRequest) -> pb.RetainedData:
        """Carry out GetRetainedData."""
        name = parse_retained_data_name(request.name)
        return _found(self._feed.get(name), name).public

    async def list(self, request: pb.ListRetainedDataRequest, caller: Caller) -> pb.ListRetainedDataResponse:
        """Carry out ListRetainedData."""
        deadline = time.monotonic() + caller.timeout
        environment, node = parse_node_name(request.parent, "parent", wildcard=True)
        matches = compile_retained_filter(request.filter)
        digest = request_digest("retained data", request.parent, request.filter)
        count, after = page_start(request.page_size, request.page_token, digest)
        # Those of one environment, or of one node, stand together.
        prefix = "environments/"
        if environment != WILDCARD:
            prefix += f"{environment}/nodes/"
            prefix += f"{node}/" if node != WILDCARD else ""
        candidates = takewhile(
            lambda record: record.name.startswith(prefix), self._feed.values(max(after, prefix))
        )

        def wanted(record: RetainedDataRecord) -> bool:
            return node in (WILDCARD, record.name.split("/")[3]) and matches(record.data)

        found = await self._scans.find(candidates, wanted, count + 1, deadline)
        shown = [record.public for record in found]
        page, token = page_end(shown, count, lambda data: data.name, pb.RetainedData.ByteSize, digest)
        return pb.ListRetainedDataResponse(retained_data=page, next_page_token=token)

    async def attach(self, request: pb.AttachRetainedDataRequest, caller: Caller) -> Operation:
        """Carry out AttachRetainedData."""
        name = parse_retained_data_name(request.name)
        check_sizes(request.app, "app")
        app = App()
        app.CopyFrom(request.app)
        own = name.rpartition("/nodes/")[0]
        app.environment = app.environment or own
        violations = validate_id("app_id", request.app_id)
        of = app_name(request.app_id)
        if app.name not in ("", of):
            violations.append(Violation("app.name", f"must be empty or {of!r}, after app_id"))
        if app.environment != own:
            violations.append(Violation("app.environment", f"must be {own}, where the data is"))
        defaults = defaults_of(self._store.mirror.environments.get(own))
        spec = checked_spec(app, of, violations, defaults)

        def run(tx: Transaction) -> OperationRecord:
            record = _current(tx, name, request.etag)
            if record.data.state == pb.RetainedData.MISSING:
                why = record.data.state_reason
                raise SupervisorError(
                    "DATA_MISSING", f"{name}: {why}", resource=name, metadata={"detail": why}
                )
            if record.data.state != pb.RetainedData.RETAINED:
                raise _busy(record)
            _check_database(record, spec)
            return create_app(tx, spec, caller, record)

        return await self._execute(request, caller, run)

    async def purge(self, request: pb.PurgeRetainedDataRequest, caller: Caller) -> Operation:
        """Carry out PurgeRetainedData."""
        name = parse_retained_data_name(request.name)

        def run(tx: Transaction) -> OperationRecord:
            record = _current(tx, name, request.etag)
            if record.data.state == pb.RetainedData.ATTACHING:
                raise _busy(record)
            under_way = next(iter(tx.open_operations(name, ("purge",))), None)
            if under_way is not None:
                return under_way
            if record.data.state != pb.RetainedData.PURGING:
                node = tx.node(record.node)
                heard = node is not None and node.node.state == Node.READY
                record = retention.doom(tx, record, "" if heard else retention.SILENT)
            operation = operations.begin_purge(tx, record, caller.actor)
            event = AppEvent(type="DataPurgeRequested", actor=caller.actor, operation=operation.name)
            event.app_uid, event.message = record.data.app_uid, f"What it had left on {record.node} is to go."
            tx.add_event(record.data.app, event)
            return operation

        return await self._execute(request, caller, run)

    async def _execute(
        self,
        request: pb.AttachRetainedDataRequest | pb.PurgeRetainedDataRequest,
        caller: Caller,
        run: operations.Command,
    ) -> Operation:
        only = request.validate_only
        return await execute(
            self._store,
            caller,
            request,
            Operation,
            lambda tx: operations.present(only_shown(tx, run(tx)) if only else run(tx)),
            request_id=request.request_id,
            validate_only=only,
        )


def _current(tx: Transaction, name: str, etag: str) -> RetainedDataRecord:
    record = _found(tx.retained(name), name)
    check_etag(etag, record.public.etag, name)
    return record


def _check_database(record: RetainedDataRecord, spec: App) -> None:
    """Refuse an app that would not look for the database that is there. What isn't known isn't checked."""
    kept, asked = record.data.database.WhichOneof("kind"), spec.database.WhichOneof("kind")
    rule = ""
    if kept is not None and kept != asked:
        rule = f"must be of the kind {kept}, as the retained data is"
    elif asked == "postgres":
        rule = (
            "must not be on a database server: what is there is its former app's, and only files can be given"
        )
    if rule:
        raise SupervisorError(
            "INVALID_FIELD", f"app.database: {rule}", violations=(Violation("app.database", rule),)
        )


def _busy(record: RetainedDataRecord) -> SupervisorError:
    attaching = record.data.state == pb.RetainedData.ATTACHING
    what = f"being attached to {record.data.attaching_app}" if attaching else "being purged"
    return SupervisorError(
        "RETAINED_DATA_BUSY",
        f"{record.name} is {what}.",
        resource=record.name,
        metadata={"state": pb.RetainedData.State.Name(record.data.state), "detail": what},
    )


def _found(record: RetainedDataRecord | None, name: str) -> RetainedDataRecord:
    if record is None:
        raise SupervisorError("RETAINED_DATA_NOT_FOUND", f"{name} does not exist.", resource=name)
    return record
