"""What an operator commands about all apps of an environment: even them out, or stop them all.

Each command pins what is to be done in one transaction; who leads carries it out.
"""

from __future__ import annotations

import asyncio

from google.longrunning.operations_pb2 import Operation

from appsupervisor.catalog.v1.app_catalog_pb2 import (
    App,
    AppResult,
    BatchStopAppsRequest,
    StopAppRequest,
)
from appsupervisor.fleet.v1 import fleet_pb2 as pb
from services.control_plane.catalog import batches
from services.control_plane.catalog.idempotency import execute
from services.control_plane.fleet import rebalances
from services.control_plane.fleet.fleet import put_environment
from services.control_plane.fleet.relocations import seconds_of
from services.control_plane.fleet.views import environment_not_found
from services.control_plane.operations import operations
from services.control_plane.rules.etags import check_etag
from services.control_plane.rules.names import environment_name, parse_environment_name
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import REBALANCE, EnvironmentRecord
from services.rpc.errors import invalid_fields
from services.rpc.pipeline.call import Caller
from services.spec.scalars import integer_violations

MOST_APART = 10_000
"""The highest tolerance, in apps."""


class EnvironmentCommands:
    """Carries out the commands on whole environments."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self._mirror = store.mirror

    async def rebalance(self, request: pb.RebalanceEnvironmentRequest, caller: Caller) -> Operation:
        """Carry out RebalanceEnvironment."""
        name = environment_name(parse_environment_name(request.name))
        seconds = seconds_of(request)
        violations = [
            *integer_violations("app_count_tolerance", request.app_count_tolerance, 0, MOST_APART),
            *integer_violations("max_moves", request.max_moves, 0, rebalances.MOST_MOVES),
        ]
        if violations:
            raise invalid_fields(violations)
        # Not in the transaction: with very many apps it takes long, and others write meanwhile.
        moves = await asyncio.to_thread(
            rebalances.plan_of,
            self._mirror,
            name,
            request.app_count_tolerance or 1,
            request.max_moves or rebalances.MOST_MOVES,
        )

        def run(tx: Transaction) -> Operation:
            _found(tx, name, request.etag)
            under_way = next(iter(tx.open_operations(name, (REBALANCE,))), None)
            if under_way is not None and not request.validate_only:
                return operations.present(under_way)
            begun = rebalances.begin(tx, name, moves, caller.actor, seconds)
            return rebalances.only_planned(tx, begun) if request.validate_only else operations.present(begun)

        return await execute(
            self._store, caller, request, Operation, run,
            request_id=request.request_id, validate_only=request.validate_only,
        )  # fmt: skip

    async def drain(self, request: pb.DrainEnvironmentRequest, caller: Caller) -> Operation:
        """Carry out DrainEnvironment."""
        name = environment_name(parse_environment_name(request.name))

        def run(tx: Transaction) -> Operation:
            record = _found(tx, name, request.etag)
            if not record.environment.cordoned:
                updated = pb.Environment()
                updated.CopyFrom(record.environment)
                updated.cordoned = True
                put_environment(tx, record, updated)
            apps = [app for app in sorted(self._mirror.apps_in(name)) if _is_wanted(tx, app)]
            pinned = BatchStopAppsRequest(requests=[StopAppRequest(name=app) for app in apps])
            begun = batches.pin(tx, "batch_stop", pinned, caller.actor)
            if request.validate_only or not apps:
                batches.advance(tx, begun.name, [AppResult(app=app) for app in apps])
                batches.end(tx, begun.name)
            stored = tx.operation(begun.name)
            assert stored is not None, "it has just been put"
            return operations.present(stored)

        return await execute(
            self._store, caller, request, Operation, run,
            request_id=request.request_id, validate_only=request.validate_only,
        )  # fmt: skip


def _is_wanted(tx: Transaction, app: str) -> bool:
    record = tx.app(app)
    return record is not None and not record.deleting and record.spec.desired_state != App.STOPPED


def _found(tx: Transaction, name: str, etag: str) -> EnvironmentRecord:
    record = tx.environment(name)
    if record is None:
        raise environment_not_found(name)
    check_etag(etag, record.environment.etag, name)
    return record
