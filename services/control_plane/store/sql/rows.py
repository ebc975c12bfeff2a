"""Records to rows and back: the only place that knows how a record is laid out in columns."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from google.rpc.status_pb2 import Status

from appsupervisor.catalog.v1.app_catalog_pb2 import App, BatchResponse, OperationMetadata
from appsupervisor.catalog.v1.certificates_pb2 import Certificate
from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.fleet.v1.fleet_pb2 import (
    DatabaseServer,
    DrainNodeMetadata,
    Environment,
    Node,
    RebalanceEnvironmentMetadata,
    RebalanceEnvironmentResponse,
)
from services.control_plane.store.packed_app import PackedApp, of_spec, of_status
from services.control_plane.store.records import (
    DRAIN,
    REBALANCE,
    AppRecord,
    BatchRecord,
    CertificateRecord,
    DatabaseServerRecord,
    EnvironmentRecord,
    NodeRecord,
    OperationRecord,
    PlacementRecord,
    RequestRecord,
    RetainedDataRecord,
    Role,
    Version,
)

Row = Sequence[Any]
"""One row of a table, in the order of its columns."""

_ROLES = {int(role): role for role in Role}


def app_values(record: AppRecord) -> dict[str, Any]:
    """Return an app's row."""
    packed = record.packed
    return {
        "name": packed.name,
        "uid": packed.uid,
        "environment": packed.environment,
        "desired_state": record.spec.desired_state,
        "generation": packed.generation,
        "target_generation": packed.target_generation,
        "target_epoch": packed.target_epoch,
        "failed_generation": packed.failed_generation,
        "failed_epoch": packed.failed_epoch,
        "deleting": packed.deleting,
        "spec": packed.spec + packed.secrets,
        "status": packed.status,
        "create_time": packed.create_time,
        "update_time": packed.update_time,
        "history": packed.history,
        "revision": packed.revision,
    }


def app_record(row: Row) -> AppRecord:
    """Return the app of a row."""
    return AppRecord.unpacked(packed_app(row))


def packed_app(row: Row) -> PackedApp:
    """Return the app of a row, packed; both its messages are known to be ones, but not kept."""
    (
        name,
        uid,
        _environment,
        _desired_state,
        generation,
        target_generation,
        target_epoch,
        failed_generation,
        failed_epoch,
        deleting,
        spec,
        status,
        create_time,
        update_time,
        history,
        revision,
    ) = row
    return PackedApp(
        *of_spec(App.FromString(spec), spec),
        *of_status(App.FromString(status), status),
        name,
        uid,
        generation,
        target_generation,
        target_epoch,
        failed_generation,
        failed_epoch,
        deleting,
        create_time,
        update_time,
        sys.intern(history),
        revision,
    )


def environment_values(record: EnvironmentRecord) -> dict[str, Any]:
    """Return an environment's row."""
    return {
        "name": record.name,
        "body": record.environment.SerializeToString(),
        "revision": record.revision,
    }


def environment_record(row: Row) -> EnvironmentRecord:
    """Return the environment of a row."""
    _name, body, revision = row
    return EnvironmentRecord(Environment.FromString(body), revision)


def database_server_values(record: DatabaseServerRecord) -> dict[str, Any]:
    """Return a database server's row."""
    return {
        "name": record.name,
        "body": record.server.SerializeToString(),
        "admin_url": record.admin_url,
        "key": record.key,
        "revision": record.revision,
    }


def database_server_record(row: Row) -> DatabaseServerRecord:
    """Return the database server of a row."""
    _name, body, admin_url, key, revision = row
    return DatabaseServerRecord(DatabaseServer.FromString(body), admin_url, key, revision)


def certificate_values(record: CertificateRecord) -> dict[str, Any]:
    """Return a certificate's row."""
    return {
        "name": record.name,
        "body": record.certificate.SerializeToString(),
        "private_key": record.private_key,
        "revision": record.revision,
    }


def certificate_record(row: Row) -> CertificateRecord:
    """Return the certificate of a row."""
    _name, body, private_key, revision = row
    return CertificateRecord(Certificate.FromString(body), private_key, revision)


def node_values(record: NodeRecord) -> dict[str, Any]:
    """Return a node's row."""
    return {
        "name": record.name,
        "environment": record.environment,
        "body": record.node.SerializeToString(),
        "revision": record.revision,
    }


def node_record(row: Row) -> NodeRecord:
    """Return the node of a row."""
    _name, _environment, body, revision = row
    return NodeRecord(Node.FromString(body), revision)


def placement_values(record: PlacementRecord) -> dict[str, Any]:
    """Return a placement's row."""
    return {
        "name": record.name,
        "app": record.app,
        "app_uid": record.app_uid,
        "replica": record.replica,
        "generation": record.generation,
        "epoch": record.epoch,
        "node": record.node,
        "role": int(record.role),
        "spec": record.spec,
        "why": record.why,
        "has_data": record.has_data,
        "since": record.since,
        "revision": record.revision,
    }


def placement_record(row: Row, apps: Mapping[str, PackedApp] = MappingProxyType({})) -> PlacementRecord:
    """Return the placement of a row, which has the strings of its app, if that is among `apps`."""
    _name, app, app_uid, replica, generation, epoch, node, role, spec, why, has_data, since, revision = row
    if (known := apps.get(app)) is not None and known.uid == app_uid:
        app, app_uid = known.name, known.uid
    return PlacementRecord(
        app=app,
        app_uid=app_uid,
        replica=replica,
        generation=generation,
        epoch=epoch,
        node=sys.intern(node),  # one string for all that is on a node
        role=_ROLES[role],
        spec=spec,
        why=sys.intern(why),  # of a few sentences
        has_data=bool(has_data),
        since=since,
        revision=revision,
    )


def retained_data_values(record: RetainedDataRecord) -> dict[str, Any]:
    """Return the row of retained data."""
    return {
        "name": record.name,
        "generation": record.generation,
        "body": record.data.SerializeToString(),
        "revision": record.revision,
    }


def retained_data_record(row: Row) -> RetainedDataRecord:
    """Return the retained data of a row."""
    _name, generation, body, revision = row
    return RetainedDataRecord(RetainedData.FromString(body), generation, revision)


def operation_values(record: OperationRecord) -> dict[str, Any]:
    """Return an operation's row."""
    return {
        "name": record.name,
        "app": record.app,
        "app_uid": record.app_uid,
        "verb": record.verb,
        "goal_generation": record.goal.generation,
        "goal_epoch": record.goal.epoch,
        "progress": record.metadata.SerializeToString(),
        "create_time": record.create_time,
        "deadline": record.deadline,
        "done": record.done,
        "error": None if record.error is None else record.error.SerializeToString(),
        "response": None if record.response is None else record.response.SerializeToString(),
        "expire_time": record.expire_time,
        "revision": record.revision,
    }


def operation_record(row: Row) -> OperationRecord:
    """Return the operation of a row."""
    (
        name,
        app,
        app_uid,
        verb,
        goal_generation,
        goal_epoch,
        progress,
        create_time,
        deadline,
        done,
        error,
        response,
        expire_time,
        revision,
    ) = row
    return OperationRecord(
        name=name,
        app=app,
        app_uid=app_uid,
        verb=verb,
        goal=Version(goal_generation, goal_epoch),
        metadata=_METADATA.get(verb, OperationMetadata).FromString(progress),
        create_time=create_time,
        deadline=deadline,
        done=bool(done),
        error=None if error is None else Status.FromString(error),
        response=None if response is None else _response_type(verb).FromString(response),
        expire_time=expire_time,
        revision=revision,
    )


Metadata = OperationMetadata | DrainNodeMetadata | RebalanceEnvironmentMetadata
Response = App | Node | RetainedData | BatchResponse | RebalanceEnvironmentResponse
_METADATA: dict[str, type[Metadata]] = {DRAIN: DrainNodeMetadata, REBALANCE: RebalanceEnvironmentMetadata}
_RESPONSES: dict[str, type[Response]] = {
    DRAIN: Node,
    REBALANCE: RebalanceEnvironmentResponse,
    "purge": RetainedData,
}


def _response_type(verb: str) -> type[Response]:
    return BatchResponse if verb.startswith("batch_") else _RESPONSES.get(verb, App)


def batch_values(record: BatchRecord) -> dict[str, Any]:
    """Return the row of a batch."""
    return {
        "name": record.name,
        "requests": record.requests,
        "finished": record.finished,
        "results": record.results,
        "revision": record.revision,
    }


def batch_record(row: Row) -> BatchRecord:
    """Return the batch of a row."""
    return BatchRecord(*row)


def request_values(record: RequestRecord) -> dict[str, Any]:
    """Return a remembered request's row."""
    return {
        "request_id": record.request_id,
        "digest": record.digest,
        "response": record.response,
        "expire_time": record.expire_time,
    }


def request_record(row: Row) -> RequestRecord:
    """Return the remembered request of a row."""
    request_id, digest, response, expire_time = row
    return RequestRecord(request_id, digest, response, expire_time)
