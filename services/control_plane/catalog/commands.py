"""The commands on apps: each stores what is wanted, in one transaction, and returns an operation.

Nothing here talks to a node: the reconciler follows the change log.
"""

from __future__ import annotations

from collections.abc import Callable

from google.longrunning.operations_pb2 import Operation

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from services.control_plane.catalog import changes, moves
from services.control_plane.catalog.code_changes import CodeChanges, Figures
from services.control_plane.catalog.idempotency import execute
from services.control_plane.catalog.recovery import recovered
from services.control_plane.operations import operations
from services.control_plane.placement.scale import newest_epoch
from services.control_plane.rules.names import DEFAULT_ENVIRONMENT, app_name, parse_app_name, validate_id
from services.control_plane.rules.sizes import check_sizes
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import (
    AppRecord,
    OperationRecord,
)
from services.rpc.errors import Violation, invalid_field
from services.rpc.pipeline.call import Caller

Lifecycle = pb.StartAppRequest | pb.StopAppRequest | pb.RestartAppRequest


class AppCommands:
    """Creates, updates, deletes, starts, stops, restarts and moves apps."""

    def __init__(self, store: CatalogStore, figures: Figures) -> None:
        """`figures` tells what nodes say of apps when they are asked."""
        self._store = store
        self._code = CodeChanges(store.mirror, figures)

    async def create(self, request: pb.CreateAppRequest, caller: Caller) -> Operation:
        """Carry out CreateApp."""
        check_sizes(request.app, "app")
        violations = validate_id("app_id", request.app_id)
        name = app_name(request.app_id)
        if request.app.name not in ("", name):
            violations.append(Violation("app.name", f"must be empty or {name!r}, after app_id"))
        environment = request.app.environment or DEFAULT_ENVIRONMENT
        defaults = changes.defaults_of(self._store.mirror.environments.get(environment))
        # Another replica may just have given the environment a default server.
        database = request.app.database
        serverless = database.WhichOneof("kind") == "postgres" and not database.postgres.server
        unsure = serverless and not defaults.database_server
        spec = None if unsure else changes.checked_spec(request.app, name, violations, defaults)

        def run(tx: Transaction) -> OperationRecord:
            now = changes.defaults_of(tx.environment(environment))
            if spec is not None and now == defaults:
                return changes.create_app(tx, spec, caller)
            return changes.create_app(
                tx, changes.checked_spec(request.app, name, list(violations), now), caller
            )

        return await self._execute(request, caller, run, request.validate_only)

    async def update(self, request: pb.UpdateAppRequest, caller: Caller) -> Operation:
        """Carry out UpdateApp."""
        check_sizes(request.app, "app")
        name = app_name(parse_app_name(request.app.name, "app.name"))
        code = await self._code.found(request, name, caller)

        def run(tx: Transaction) -> OperationRecord:
            record = tx.app(name)
            # With an etag it is one version that is meant; what has been deleted since is not made anew.
            if record is None and request.allow_missing and not request.app.etag:
                app_id = name.removeprefix("apps/")
                violations = validate_id("app.name", app_id)
                defaults = changes.defaults_of(tx.environment(request.app.environment or DEFAULT_ENVIRONMENT))
                spec = changes.checked_spec(request.app, name, violations, defaults)
                return changes.create_app(tx, spec, caller)
            record = changes.changeable(record, name, request.app.etag)
            operation = changes.update(tx, record, request, caller)
            return changes.with_notice(tx, record, operation, code)

        return await self._execute(request, caller, run, request.validate_only)

    async def delete(self, request: pb.DeleteAppRequest, caller: Caller) -> Operation:
        """Carry out DeleteApp."""
        name = app_name(parse_app_name(request.name, "name"))
        if request.data_policy not in pb.DeleteAppRequest.DataPolicy.values():
            raise invalid_field("data_policy", "must be DROP or RETAIN")

        def run(tx: Transaction) -> OperationRecord:
            record = tx.app(name)
            if record is None and request.allow_missing:
                return changes.nothing_to_do(tx, name, caller)
            return changes.delete(tx, changes.existing(record, name, request.etag), request, caller)

        return await self._execute(request, caller, run, request.validate_only)

    async def start(self, request: pb.StartAppRequest, caller: Caller) -> Operation:
        """Carry out StartApp."""
        return await self._lifecycle(request, caller, "start", changes.started)

    async def stop(self, request: pb.StopAppRequest, caller: Caller) -> Operation:
        """Carry out StopApp."""
        return await self._lifecycle(request, caller, "stop", changes.stopped)

    async def restart(self, request: pb.RestartAppRequest, caller: Caller) -> Operation:
        """Carry out RestartApp."""
        return await self._lifecycle(request, caller, "restart", changes.restarted)

    async def recover(self, request: pb.RecoverAppRequest, caller: Caller) -> Operation:
        """Carry out RecoverApp."""
        name = app_name(parse_app_name(request.name, "name"))

        def run(tx: Transaction) -> OperationRecord:
            record = changes.changeable(tx.app(name), name, request.etag)
            changed = recovered(tx, record, accept_data_loss=request.accept_data_loss)
            return changes.put(tx, record, changed, "recover", caller, "RecoverRequested")

        return await self._execute(request, caller, run, request.validate_only)

    async def move(self, request: pb.MoveAppRequest, caller: Caller) -> Operation:
        """Carry out MoveApp."""
        name = app_name(parse_app_name(request.name, "name"))
        node = moves.parsed_node(request.node, "node")
        source = moves.parsed_node(request.source_node, "source_node")

        def run(tx: Transaction) -> OperationRecord:
            record = changes.changeable(tx.app(name), name, request.etag)
            changed, operation = moves.move(
                tx, self._store.mirror, record, node, caller.actor, source_node=source
            )
            if changed is not record:
                newest = newest_epoch(changed)
                why = next(it.why for it in tx.placements_of(name) if it.epoch == newest)
                changes.add_event(
                    tx, changed, "MoveRequested", actor=caller.actor, operation=operation.name, message=why
                )
            return operation

        return await self._execute(request, caller, run, request.validate_only)

    async def _lifecycle(
        self,
        request: Lifecycle,
        caller: Caller,
        verb: str,
        change: Callable[[AppRecord], AppRecord],
    ) -> Operation:
        name = app_name(parse_app_name(request.name, "name"))

        def run(tx: Transaction) -> OperationRecord:
            record = changes.changeable(tx.app(name), name, request.etag)
            changed = change(record)
            if not isinstance(request, pb.StopAppRequest) and request.accept_data_loss:
                changed = changes.without_data(tx, record, changed)
            return changes.put(tx, record, changed, verb, caller, f"{verb.capitalize()}Requested")

        return await self._execute(request, caller, run, request.validate_only)

    async def _execute(
        self,
        request: pb.CreateAppRequest
        | pb.UpdateAppRequest
        | pb.DeleteAppRequest
        | pb.RecoverAppRequest
        | pb.MoveAppRequest
        | Lifecycle,
        caller: Caller,
        run: Callable[[Transaction], OperationRecord],
        validate_only: bool,
    ) -> Operation:
        return await execute(
            self._store,
            caller,
            request,
            Operation,
            lambda tx: operations.present(changes.only_shown(tx, run(tx)) if validate_only else run(tx)),
            request_id=request.request_id,
            validate_only=validate_only,
        )
