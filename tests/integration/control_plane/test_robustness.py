"""Calls that are broken, too large, cancelled or late; secrets; and a start with a large catalog."""

import asyncio
import logging
import sqlite3
from contextlib import closing

import grpc
import pytest
from google.longrunning import operations_pb2 as lro

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.assignment import assign, pinned
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.reconciler.observation import observe
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version
from services.rpc.errors import SupervisorError
from services.rpc.status import reason_of
from tests.eventually import WITHIN, eventually
from tests.fakes.runtime_node import Behaviour, FakeNode, Hosted
from tests.integration.control_plane.plane import NODE, Plane, condition
from tests.integration.control_plane.test_lifecycle import starts

CREATE = "/appsupervisor.catalog.v1.AppCatalog/CreateApp"
WATCH = "/appsupervisor.catalog.v1.AppCatalog/WatchApps"
WAIT_OPERATION = "/google.longrunning.Operations/WaitOperation"
PATIENT = {"node_timeout": 60.0}
"""Of a control plane that calls no node lost for a load which it shares with it here."""


@pytest.mark.parametrize("method", [CREATE, WAIT_OPERATION])
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x12\x02\xc3\x28"])
async def test_bytes_that_are_no_message_are_refused(plane: Plane, method: str, data: bytes) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plane.channel.unary_unary(method)(data)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused.value) == "MALFORMED_REQUEST"


async def test_bytes_that_are_no_message_are_refused_by_streams_too(plane: Plane) -> None:
    call = plane.channel.unary_stream(WATCH)(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert reason_of(refused.value) == "MALFORMED_REQUEST"


async def test_a_message_that_is_too_large_is_refused_and_the_connection_lives(plane: Plane) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plane.channel.unary_unary(CREATE)(b"\x0a" * (5 * 1024 * 1024))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await plane.create("shop", wait=False)


async def test_an_error_about_a_long_text_reaches_the_caller_as_what_it_is(plane: Plane) -> None:
    await plane.create("shop", wait=False)
    long = "é" * 4_000
    paths = [f"{long[:100]}{n}" for n in range(300)]
    for call, reason in (
        (plane.apps.StopApp(pb.StopAppRequest(name="apps/shop", etag=long)), "ETAG_MISMATCH"),
        (plane.apps.ListApps(pb.ListAppsRequest(filter=f"{long}(x)")), "INVALID_FILTER"),
        (plane.operations.ListOperations(lro.ListOperationsRequest(filter=long)), "INVALID_FILTER"),
        (plane.update("apps/shop", paths), "INVALID_FIELD"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert reason_of(refused.value) == reason


async def test_reads_are_answered_while_every_command_waits_for_the_database(plane: Plane) -> None:
    await plane.create("shop", wait=False)
    with closing(sqlite3.connect(plane.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        calls = [asyncio.ensure_future(plane.create(f"a{n}", wait=False)) for n in range(100)]
        writer = plane.store._writer
        await eventually(lambda: len(writer._running) + len(writer._queue), lambda waiting: waiting >= 64)
        request = pb.GetAppRequest(name="apps/shop")
        assert (await plane.apps.GetApp(request, timeout=WITHIN)).name == "apps/shop"
        assert all(not call.done() for call in calls)
        other.execute("ROLLBACK")
    await asyncio.gather(*calls)


async def test_a_call_that_is_cancelled_or_late_is_carried_out_wholly_or_not_at_all(plane: Plane) -> None:
    await plane.node()
    outcomes = []
    for n in range(40):
        request = pb.CreateAppRequest(app=pb.App(entrypoint="a:b"), app_id=f"a{n}", request_id=f"r{n}")
        call = plane.apps.CreateApp(request, timeout=0.002 * (n % 5) + 0.0005 if n % 2 else None)
        if n % 2 == 0:
            await asyncio.sleep(0.001 * (n % 7))
            call.cancel()
        outcomes += await asyncio.gather(call, return_exceptions=True)
    for n in range(40):  # a repeat tells what became of it, or does it now
        request = pb.CreateAppRequest(app=pb.App(entrypoint="a:b"), app_id=f"a{n}", request_id=f"r{n}")
        operation = await plane.apps.CreateApp(request)
        await plane.done(operation)
        events = await plane.events(f"apps/a{n}")
        assert [e.type for e in events].count("Created") == 1
    operations = (await plane.operations.ListOperations(lro.ListOperationsRequest(page_size=1000))).operations
    assert len(operations) == 40


async def test_secrets_show_up_nowhere_on_their_way_to_a_node(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    node = await plane.node(behaviours={"broken:app": Behaviour(fails=("APP_STARTUP_FAILED", "No."))})
    canary = "canary-4711"
    await plane.create("shop", secret_env={"TOKEN": canary})
    operations = [
        await plane.update("apps/shop", ["entrypoint"], entrypoint="broken:app"),
        await plane.update("apps/shop", ["entrypoint"], entrypoint="good:app"),
    ]
    await plane.done(operations[1])
    node.refuse = SupervisorError("NODE_FULL", "Full.")
    await plane.apps.RestartApp(pb.RestartAppRequest(name="apps/shop"))
    await eventually(lambda: starts(node), lambda found: "apps/shop/instances/g3-e2" in found)
    node.refuse = None
    await plane.app("apps/shop", lambda app: not app.reconciling)
    assert dict(node.hosted["apps/shop/instances/g3-e2"].spec.secret_env) == {"TOKEN": canary}
    told = [
        await plane.get("apps/shop"),
        await plane.apps.ListApps(pb.ListAppsRequest()),
        await plane.operations.ListOperations(lro.ListOperationsRequest()),
        *await plane.events("apps/shop"),
    ]
    for message in told:
        assert canary.encode() not in message.SerializeToString()
    assert canary not in caplog.text
    assert canary not in repr([record.__dict__ for record in caplog.records])


@pytest.mark.parametrize("plane", [PATIENT], indirect=True)
async def test_waiting_apps_cost_nothing_that_others_would_feel(plane: Plane) -> None:
    """200 apps whose environment has no node; one elsewhere starts as quickly as ever."""
    await plane.fleet.CreateEnvironment(
        fleet_pb2.CreateEnvironmentRequest(environment=fleet_pb2.Environment(), environment_id="empty")
    )
    await asyncio.gather(
        *(plane.create(f"w{n}", wait=False, environment="environments/empty") for n in range(200))
    )
    await plane.node()
    for n in range(200):
        await plane.app(f"apps/w{n}", lambda app: condition(app, "Scheduled").status != 0)
    revision = plane.store.mirror.apps.revision
    await plane.create("shop")
    mine = {e.revision for e in plane.store.mirror.apps.since(revision, 1000) if e.key != "apps/shop"}
    await asyncio.sleep(1.5)  # a sweep or two
    assert mine == set()
    others = {e.key for e in plane.store.mirror.apps.since(revision, 1000)}
    assert others == {"apps/shop"}


@pytest.mark.parametrize("plane", [PATIENT], indirect=True)
async def test_a_restart_of_the_control_plane_touches_no_app_and_goes_on_with_operations(
    plane: Plane,
) -> None:
    node = await plane.node()
    go = node.hold("slow:app")
    for n in range(5):
        await plane.create(f"app-{n}")
    operation = await plane.create("slow", wait=False, entrypoint="slow:app")
    await eventually(lambda: starts(node), lambda found: len(found) == 6)
    before = [call for call in node.calls if call[0] in ("StartInstance", "StopInstance")]
    revision = (await plane.get("apps/app-0")).SerializeToString(deterministic=True)
    await plane.restart()
    go.set()
    assert (await plane.done(operation)).state == rt.Instance.RUNNING
    calls = [call for call in node.calls if call[0] in ("StartInstance", "StopInstance")]
    assert calls == before
    assert (await plane.get("apps/app-0")).SerializeToString(deterministic=True) == revision


@pytest.mark.parametrize("plane", [PATIENT], indirect=True)
async def test_a_restart_with_many_settled_apps_writes_nothing_and_calls_nobody(plane: Plane) -> None:
    node = await plane.node()
    fill(plane, node, 2_000)
    await plane.stop()
    commands, before = len(starts(node)), plane.store.mirror.apps.revision
    await plane.start()
    await plane.create("witness")  # the node was heard, and all that is on it looked at
    touched = {entry.key for entry in plane.store.mirror.apps.since(before, 10_000)}
    assert touched == {"apps/witness"}
    assert [call for call in node.calls if call[0] == "StopInstance"] == []
    assert starts(node)[commands:] == ["apps/witness/instances/g1-e1"]


def fill(plane: Plane, node: FakeNode, count: int) -> None:
    """Put apps into the catalog and on a node as they are long after their start."""
    view_of = fleet_pb2.Node(name=NODE, http_address=node.http_address, base_domain=node.base_domain)
    for n in range(count):
        name, uid = f"apps/a{n}", f"uid-{n}"
        spec = normalize_app(pb.App(name=name, entrypoint="a:b"))
        instance = rt.Instance(
            name=f"{name}/instances/g1-e1",
            app_uid=uid,
            node=NODE,
            incarnation=node.incarnation,
            generation=1,
            epoch=1,
            state=rt.Instance.RUNNING,
            health=rt.Instance.Health.HEALTHY,
        )
        record = AppRecord(name, uid, spec, pb.App(), 1, Version(1, 1), 1, 1)
        placement = PlacementRecord(
            name, uid, 0, 1, 1, NODE, Role.CURRENT, pinned(spec), why="It is the only one.", has_data=True
        )
        seen = Snapshot({NODE: NodeView(view_of, Sight.HEARD, {instance.name: instance})})
        record = observe(record, assign(record, [placement], seen, 1), seen, 1)
        node.hosted[instance.name] = Hosted(rt.InstanceSpec(name=instance.name, app_uid=uid), instance)
        node.feed.publish(instance)

        def put(tx: Transaction, record: AppRecord = record, placement: PlacementRecord = placement) -> None:
            tx.put_app(record)
            tx.put_placement(placement)

        last = plane.store.write(put)
    last.result(60)
