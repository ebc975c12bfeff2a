"""What an operator commands about nodes: cordon, uncordon, drain, delete. Each is one transaction.

What follows for the apps on a node is the reconciler's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.longrunning.operations_pb2 import Operation
from google.protobuf.message import Message

from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.fleet.v1 import fleet_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from services.control_plane.catalog import retention
from services.control_plane.catalog.idempotency import execute
from services.control_plane.fleet import drains
from services.control_plane.fleet.relocations import seconds_of
from services.control_plane.fleet.views import node_etag, node_not_found, shown_node
from services.control_plane.operations import operations
from services.control_plane.placement.failover import serving_alone
from services.control_plane.rules.etags import app_etag, check_etag
from services.control_plane.rules.names import node_name, parse_node_name
from services.control_plane.rules.sentences import counted
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import DRAIN, NodeRecord, Role, timestamp
from services.rpc.errors import SupervisorError
from services.rpc.pipeline.call import Caller
from services.spec.availability import effective_availability

M = TypeVar("M", bound=Message)
NodeCommand = pb.CordonNodeRequest | pb.UncordonNodeRequest | pb.DrainNodeRequest | pb.DeleteNodeRequest


class NodeCommands:
    """Carries out the commands on nodes."""

    def __init__(self, store: CatalogStore, is_heard: Callable[[str], bool]) -> None:
        """`is_heard` tells, from any thread, whether a node is heard, by the leader."""
        self._store = store
        self._mirror = store.mirror
        self._is_heard = is_heard

    async def cordon(self, request: pb.CordonNodeRequest, caller: Caller) -> pb.Node:
        """Carry out CordonNode."""
        name = _name_of(request)

        def run(tx: Transaction) -> pb.Node:
            return shown_node(self._mirror, cordoned(tx, _found(tx, name, request.etag), True))

        return await self._execute(request, caller, pb.Node, run)

    async def uncordon(self, request: pb.UncordonNodeRequest, caller: Caller) -> pb.Node:
        """Carry out UncordonNode."""
        name = _name_of(request)

        def run(tx: Transaction) -> pb.Node:
            record = _found(tx, name, request.etag)
            for drain in tx.open_operations(name, (DRAIN,)):
                replaced = SupervisorError("OPERATION_SUPERSEDED", f"{name} was uncordoned.", resource=name)
                operations.end(tx, drain, replaced, step="superseded")
            return shown_node(self._mirror, cordoned(tx, record, False))

        return await self._execute(request, caller, pb.Node, run)

    async def drain(self, request: pb.DrainNodeRequest, caller: Caller) -> Operation:
        """Carry out DrainNode."""
        name = _name_of(request)
        seconds = seconds_of(request)

        def run(tx: Transaction) -> Operation:
            record = cordoned(tx, _found(tx, name, request.etag), True)
            under_way = next(iter(tx.open_operations(name, (DRAIN,))), None)
            begun = under_way or drains.begin(tx, record, caller.actor, seconds)
            return operations.present(begun)

        return await self._execute(request, caller, Operation, run)

    async def delete(self, request: pb.DeleteNodeRequest, caller: Caller) -> None:
        """Carry out DeleteNode."""
        name = _name_of(request)

        def run(tx: Transaction) -> pb.Node:
            record = _found(tx, name, request.etag)
            if self._is_heard(name):
                raise SupervisorError(
                    "NODE_ALIVE",
                    f"{name} can be heard at {record.node.address}; end its process first.",
                    resource=name,
                    metadata={"address": record.node.address},
                )
            if record.node.lease_state == pb.Node.GRANTED and _may_answer(tx, name):
                raise SupervisorError(
                    "NODE_ALIVE",
                    f"The lease of {name} has not run out yet: it may still answer for its apps. Try again "
                    "in some seconds.",
                    resource=name,
                    metadata={"address": record.node.address},
                )
            alone = [app for app in tx.apps_on(name) if _serves_alone(tx, app, name)]
            if alone and not request.force:
                raise SupervisorError(
                    "NODE_ALIVE",
                    f"{name} was the only node of its environment when it was last heard, and may serve "
                    f"{_told(alone, 'app')}. Let it be heard again; or, where it has ended, use `force`.",
                    resource=name,
                    metadata={"address": record.node.address, "apps": str(len(alone)), "app": alone[0]},
                )
            kept = [app for app in tx.apps_on(name) if _keeps_data(tx, app, name)]
            if kept and not request.force:
                raise SupervisorError(
                    "DATA_ON_NODE",
                    f"{name} has data that exists nowhere else, of {_told(kept, 'app')}. Start the node "
                    "again; or give that data up, with `force`.",
                    resource=name,
                    metadata={"apps": str(len(kept)), "app": kept[0]},
                )
            left = [it.data.app for it in tx.retained_on(name) if it.data.state != RetainedData.MISSING]
            if left and not request.force:
                raise SupervisorError(
                    "DATA_ON_NODE",
                    f"{name} has data that exists nowhere else, of {_told(left, 'deleted app')}. Start "
                    "the node again and attach or purge it; or give it up, with `force`.",
                    resource=name,
                    metadata={"retained": str(len(left)), "app": left[0]},
                )
            retention.forget_node(tx, name)
            for drain in tx.open_operations(name, (DRAIN,)):
                gone = SupervisorError("OPERATION_SUPERSEDED", f"{name} was deleted.", resource=name)
                operations.end(tx, drain, gone, step="superseded")
            tx.delete_node(name)
            return record.node

        await self._execute(request, caller, pb.Node, run)

    async def _execute(
        self,
        request: NodeCommand,
        caller: Caller,
        response: type[M],
        run: Callable[[Transaction], M],
    ) -> M:
        return await execute(
            self._store,
            caller,
            request,
            response,
            run,
            request_id=request.request_id,
            validate_only=request.validate_only,
        )


def cordoned(tx: Transaction, record: NodeRecord, wanted: bool) -> NodeRecord:
    """Store that a node is cordoned, or no longer, and return it."""
    if record.node.cordoned == wanted:
        return record
    node = pb.Node()
    node.CopyFrom(record.node)
    node.cordoned = wanted
    node.etag = app_etag(f"{node.create_time.ToMicroseconds():08x}"[-8:], tx.revision, tx.history)
    node.update_time.CopyFrom(timestamp(tx.now))
    changed = NodeRecord(node)
    tx.put_node(changed)
    return changed


def _may_answer(tx: Transaction, node: str) -> bool:
    """Tell whether an app is on a node that nobody else may answer for as long as that has its lease."""
    apps = (tx.app(name) for name in tx.apps_on(node))
    return any(effective_availability(app.spec) == InstanceSpec.CONSISTENT for app in apps if app is not None)


def _serves_alone(tx: Transaction, name: str, node: str) -> bool:
    app = tx.app(name)
    return app is not None and node in serving_alone(app, tx.placements_of(name), tx.node)


def _keeps_data(tx: Transaction, app: str, node: str) -> bool:
    there = (it for it in tx.placements_of(app) if it.node == node and it.role is not Role.LOST)
    return any(it.has_data for it in there)


def _told(apps: list[str], noun: str) -> str:
    return f"{counted(len(apps), noun)}, {apps[0]}{' among them' if apps[1:] else ''}"


def _name_of(request: NodeCommand) -> str:
    return node_name(*parse_node_name(request.name))


def _found(tx: Transaction, name: str, etag: str) -> NodeRecord:
    record = tx.node(name)
    if record is None:
        raise node_not_found(name)
    check_etag(etag, node_etag(record.node), name)
    return record
