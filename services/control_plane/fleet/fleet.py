"""Environments and nodes: the commands and questions about the fleet."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial

from appsupervisor.catalog.v1.app_catalog_pb2 import DeleteAppRequest
from appsupervisor.fleet.v1 import fleet_pb2 as pb
from services.control_plane.catalog import retention
from services.control_plane.catalog.changes import DEFAULT_BASE_DOMAIN, check_server, remove
from services.control_plane.catalog.idempotency import execute
from services.control_plane.catalog.pages import page_by_name, request_digest
from services.control_plane.fleet.views import (
    environment_not_found,
    node_not_found,
    shown_environment,
    shown_node,
)
from services.control_plane.rules.environment_masks import updated_environment
from services.control_plane.rules.etags import app_etag, check_etag
from services.control_plane.rules.fleet_rules import environment_violations, node_violations
from services.control_plane.rules.names import (
    DEFAULT_ENVIRONMENT,
    environment_name,
    node_name,
    parse_environment_name,
    parse_node_name,
    validate_id,
)
from services.control_plane.rules.sentences import counted
from services.control_plane.rules.sizes import check_sizes
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import EnvironmentRecord, NodeRecord, Role, timestamp
from services.rpc.errors import SupervisorError, Violation, invalid_fields
from services.rpc.pipeline.call import Caller
from services.spec.versions import VERSION, is_too_far

MOST_APPS = 1_000
"""Apps that a forced deletion of an environment takes with it."""

REGISTRATION_SECONDS = 10.0
"""Silence after which a node should register again."""


class FleetService:
    """Answers what is asked and told about environments and nodes."""

    def __init__(self, store: CatalogStore, is_heard: Callable[[str], bool]) -> None:
        """`is_heard` tells, from any thread, whether a node is heard, by the leader."""
        self._store = store
        self._mirror = store.mirror
        self._is_heard = is_heard

    async def create_environment(
        self, request: pb.CreateEnvironmentRequest, caller: Caller
    ) -> pb.Environment:
        """Carry out CreateEnvironment."""
        check_sizes(request.environment, "environment")
        name = environment_name(request.environment_id)
        violations = validate_id("environment_id", request.environment_id)
        if request.environment.name not in ("", name):
            violations.append(
                Violation("environment.name", f"must be empty or {name!r}, after environment_id")
            )
        violations += environment_violations(request.environment)
        if violations:
            raise invalid_fields(violations)

        def run(tx: Transaction) -> pb.Environment:
            if tx.environment(name) is not None:
                raise SupervisorError("ENVIRONMENT_ALREADY_EXISTS", f"{name} exists already.", resource=name)
            environment = pb.Environment(
                name=name,
                display_name=request.environment.display_name,
                labels=request.environment.labels,
                cordoned=request.environment.cordoned,
                app_defaults=_kept_defaults(request.environment),
                uid=str(uuid.uuid4()),
                create_time=timestamp(tx.now),
                update_time=timestamp(tx.now),
            )
            check_server(tx, environment.app_defaults.database_server)
            environment.etag = app_etag(environment.uid, 1)
            tx.put_environment(EnvironmentRecord(environment))
            return environment

        return await execute(
            self._store,
            caller,
            request,
            pb.Environment,
            run,
            request_id=request.request_id,
            validate_only=request.validate_only,
        )

    def get_environment(self, request: pb.GetEnvironmentRequest) -> pb.Environment:
        """Carry out GetEnvironment."""
        name = environment_name(parse_environment_name(request.name))
        record = self._mirror.environments.get(name)
        if record is None:
            raise environment_not_found(name)
        nodes = sum(node.environment == name for node in self._mirror.nodes.values())
        return shown_environment(self._mirror, record, nodes)

    def list_environments(self, request: pb.ListEnvironmentsRequest) -> pb.ListEnvironmentsResponse:
        """Carry out ListEnvironments."""
        nodes = Counter(node.environment for node in self._mirror.nodes.values())
        page, token = page_by_name(
            lambda after: (
                shown_environment(self._mirror, record, nodes[record.name])
                for record in self._mirror.environments.values(after)
            ),
            lambda environment: environment.name,
            pb.Environment.ByteSize,
            size=request.page_size,
            token=request.page_token,
            digest=request_digest("environments"),
        )
        return pb.ListEnvironmentsResponse(environments=page, next_page_token=token)

    async def update_environment(
        self, request: pb.UpdateEnvironmentRequest, caller: Caller
    ) -> pb.Environment:
        """Carry out UpdateEnvironment."""
        check_sizes(request.environment, "environment")
        name = environment_name(parse_environment_name(request.environment.name, "environment.name"))

        def run(tx: Transaction) -> pb.Environment:
            record = tx.environment(name)
            if record is None:
                raise environment_not_found(name)
            check_etag(request.environment.etag, record.environment.etag, name)
            updated = updated_environment(record.environment, request.environment, request.update_mask)
            if updated == record.environment:
                return updated
            if violations := environment_violations(updated):
                raise invalid_fields(violations)
            if updated.app_defaults.database_server != record.environment.app_defaults.database_server:
                check_server(tx, updated.app_defaults.database_server)
            return put_environment(tx, record, updated)

        environment = await execute(
            self._store,
            caller,
            request,
            pb.Environment,
            run,
            request_id=request.request_id,
            validate_only=request.validate_only,
        )
        nodes = sum(node.environment == name for node in self._mirror.nodes.values())
        return shown_environment(self._mirror, EnvironmentRecord(environment), nodes)

    async def delete_environment(self, request: pb.DeleteEnvironmentRequest, caller: Caller) -> None:
        """Carry out DeleteEnvironment."""
        name = environment_name(parse_environment_name(request.name))
        if request.force and not request.validate_only:
            await self._delete_apps(request, name, caller)

        def run(tx: Transaction) -> pb.Environment:
            record = self._deletable(tx, request, name)
            apps = tx.count_apps(name)
            if apps and not (request.force and request.validate_only):
                raise _not_empty(name, apps, 0)
            for node in tx.nodes(name):
                retention.forget_node(tx, node.name)
                tx.delete_node(node.name)
            tx.delete_environment(name)
            return record.environment

        await execute(
            self._store,
            caller,
            request,
            pb.Environment,
            run,
            request_id=request.request_id,
            validate_only=request.validate_only,
        )

    def _deletable(
        self, tx: Transaction, request: pb.DeleteEnvironmentRequest, name: str
    ) -> EnvironmentRecord:
        record = tx.environment(name)
        if record is None:
            raise environment_not_found(name)
        check_etag(request.etag, record.environment.etag, name)
        if name == DEFAULT_ENVIRONMENT:
            raise SupervisorError("ENVIRONMENT_PROTECTED", f"{name} cannot be deleted.", resource=name)
        alive = sum(self._is_heard(node.name) for node in tx.nodes(name))
        apps = tx.count_apps(name)
        if alive or (apps > MOST_APPS and request.force):
            raise _not_empty(name, apps, alive)
        return record

    async def _delete_apps(self, request: pb.DeleteEnvironmentRequest, name: str, caller: Caller) -> None:
        """Delete an environment's apps, each in a transaction of its own: a watch resumes between any two."""

        def run(tx: Transaction, app: str) -> None:
            self._deletable(tx, request, name)
            record = tx.app(app)
            if record is not None and record.spec.environment == name:
                remove(tx, record, caller.actor, DeleteAppRequest.RETAIN)

        if self._mirror.environments.get(name) is not None:
            for app in sorted(self._mirror.apps_in(name)):
                await asyncio.wrap_future(self._store.write(partial(run, app=app)))

    async def register_node(self, request: pb.RegisterNodeRequest, caller: Caller) -> pb.RegisterNodeResponse:
        """Carry out RegisterNode."""
        check_sizes(request.node, "node")
        environment_id = parse_environment_name(request.parent, "parent")
        name = node_name(environment_id, request.node_id)
        violations = validate_id("node_id", request.node_id, reserved=False)
        violations += node_violations(request.node)
        if violations:
            raise invalid_fields(violations)
        if is_too_far(request.node.version):
            raise SupervisorError(
                "NODE_VERSION_UNSUPPORTED",
                f"{name} is of version {request.node.version}, and this control plane of {VERSION}; they may "
                "be one minor version apart.",
                resource=name,
                metadata={"version": request.node.version, "control_plane_version": VERSION},
            )

        def run(tx: Transaction) -> pb.RegisterNodeResponse:
            if tx.environment(environment_name(environment_id)) is None:
                raise environment_not_found(environment_name(environment_id))
            known = tx.node(name)
            node = _registered(request.node, name, known, tx.now)
            if known is not None:
                self._check_name(tx, known, node)
            if known is None or _base_domain(known.node) != _base_domain(node):
                _check_base_domain(tx, node, environment_name(environment_id))
            if known is None or node != known.node:
                node.update_time.CopyFrom(timestamp(tx.now))
                tx.put_node(NodeRecord(node))
            return pb.RegisterNodeResponse(node=shown_node(self._mirror, NodeRecord(node)))

        response = await execute(self._store, caller, request, pb.RegisterNodeResponse, run)
        response.registration_interval.FromMilliseconds(int(REGISTRATION_SECONDS * 1000))
        return response

    def _check_name(self, tx: Transaction, known: NodeRecord, node: pb.Node) -> None:
        """Refuse the name to another node while its bearer lives or has apps: their data is there."""
        if self._is_alive(known, node):
            raise SupervisorError(
                "NODE_NAME_TAKEN",
                f"{known.name} is another node, alive at {known.node.address}.",
                resource=known.name,
                metadata={"address": known.node.address},
            )
        if not known.node.uid or known.node.uid == node.uid:
            return
        lost = []
        for app in tx.apps_on(known.name):
            there = [it for it in tx.placements_of(app) if it.node == known.name]
            if any(it.role is not Role.LOST for it in there):
                raise SupervisorError(
                    "NODE_NAME_TAKEN",
                    f"{known.name} is another node, with the identity {known.node.uid}, and {app} is placed "
                    "on it. Start that node with its own data directory, or this one under another name; or "
                    "give its apps' data up: StartApp or RestartApp with accept_data_loss, or DeleteApp.",
                    resource=known.name,
                    metadata={"uid": known.node.uid, "app": app},
                )
            lost += there
        for placement in lost:  # they were given up, and what has the name from now on never had them
            tx.delete_placement(placement)

    def _is_alive(self, known: NodeRecord, node: pb.Node) -> bool:
        """Tell whether another living process has the name; two can't listen on one address."""
        if known.node.incarnation == node.incarnation or known.node.address == node.address:
            return False
        if known.node.uid and known.node.uid == node.uid:
            return False  # it was started again, elsewhere, before its silence was noticed
        return self._is_heard(known.name)

    def get_node(self, request: pb.GetNodeRequest) -> pb.Node:
        """Carry out GetNode."""
        name = node_name(*parse_node_name(request.name))
        record = self._mirror.nodes.get(name)
        if record is None:
            raise node_not_found(name)
        return shown_node(self._mirror, record)

    def list_nodes(self, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        """Carry out ListNodes."""
        environment_id = parse_environment_name(request.parent, "parent", wildcard=True)
        prefix = "environments/"
        if environment_id != "-":
            name = environment_name(environment_id)
            if self._mirror.environments.get(name) is None:
                raise environment_not_found(name)
            prefix = name + "/nodes/"
        page, token = page_by_name(
            lambda after: (
                shown_node(self._mirror, record, whole=False)
                for record in self._mirror.nodes.values(after)
                if record.name.startswith(prefix)
            ),
            lambda node: node.name,
            pb.Node.ByteSize,
            size=request.page_size,
            token=request.page_token,
            digest=request_digest("nodes", request.parent),
        )
        return pb.ListNodesResponse(nodes=page, next_page_token=token)


def _kept_defaults(environment: pb.Environment) -> pb.AppDefaults | None:
    defaults = pb.AppDefaults()
    defaults.CopyFrom(environment.app_defaults)
    defaults.DiscardUnknownFields()
    return defaults if defaults.ByteSize() else None


def put_environment(tx: Transaction, record: EnvironmentRecord, updated: pb.Environment) -> pb.Environment:
    """Store a changed environment under a new etag, and return it."""
    updated.update_time.CopyFrom(timestamp(tx.now))
    updated.etag = app_etag(updated.uid, tx.revision, tx.history)
    tx.put_environment(EnvironmentRecord(updated))
    if updated.cordoned != record.environment.cordoned:
        for node in tx.nodes(updated.name):  # whether it may be given apps has changed
            tx.put_node(node)
    return updated


def _registered(told: pb.Node, name: str, known: NodeRecord | None, now: int) -> pb.Node:
    """Return the node as it is stored: what it told, and what was known of this incarnation."""
    node = pb.Node()
    node.CopyFrom(told)
    node.DiscardUnknownFields()
    node.name = name
    for field in (
        "app_count",
        "cordoned",
        "schedulable",
        "reserved_memory_bytes",
        "used_memory_bytes",
        "etag",
        "serves_alone",
    ):
        node.ClearField(field)
    node.state, node.state_reason = pb.Node.JOINING, "It has not yet reported what it runs."
    node.create_time.CopyFrom(timestamp(now))
    node.update_time.CopyFrom(timestamp(now))
    if known is not None:
        node.create_time.CopyFrom(known.node.create_time)
        node.lease_state = known.node.lease_state  # what was granted to the life before still counts
        node.serves_alone = known.node.serves_alone
        node.cordoned, node.etag = known.node.cordoned, known.node.etag
        if known.node.incarnation == node.incarnation:
            node.state, node.state_reason = known.node.state, known.node.state_reason
            node.used_memory_bytes = known.node.used_memory_bytes
            node.update_time.CopyFrom(known.node.update_time)
    return node


def _base_domain(node: pb.Node) -> str:
    return node.base_domain or DEFAULT_BASE_DOMAIN


def _check_base_domain(tx: Transaction, node: pb.Node, environment: str) -> None:
    """Refuse a base domain that is new to the environment and has custom domains of its apps under it.

    Each of them would be the own address of some app, now or later. One that the environment has already is
    not refused: its nodes would not come back, and on them own addresses go before custom domains.
    """
    base = _base_domain(node)
    if any(base == _base_domain(it.node) for it in tx.nodes(environment)):
        return
    for domain, name in tx.domains_under(base):
        app = tx.app(name)
        if app is not None and app.spec.environment == environment:
            raise SupervisorError(
                "DOMAIN_TAKEN",
                f"The base domain {base} would be above {domain}, a domain of {name}; take that from the app "
                "first, or give the node another base domain.",
                resource=node.name,
                metadata={"domain": domain, "app": name, "base_domain": base},
            )


def _not_empty(name: str, apps: int, nodes: int) -> SupervisorError:
    return SupervisorError(
        "ENVIRONMENT_NOT_EMPTY",
        f"{name} has {counted(apps, 'app')} and {counted(nodes, 'node')} that can be heard.",
        resource=name,
        metadata={"apps": str(apps), "nodes": str(nodes)},
    )
