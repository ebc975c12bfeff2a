"""Apps with databases on a registered server, from the API to the database: their life, and what hinders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import psycopg
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Database, Instance
from services.control_plane.databases import health, templates, turns
from services.rpc.errors import SupervisorError
from services.rpc.status import reason_of
from tests.eventually import eventually
from tests.fakes.runtime_node import Behaviour, FakeNode
from tests.integration.control_plane.plane import Plane, condition
from tests.integration.databases.conftest import NAME, ask, login_in
from tests.postgresql import Server


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    plane = Plane(tmp_path, node_timeout=1.0)
    await plane.start()
    try:
        await plane.node()
        yield plane
    finally:
        await plane.close()


@pytest.fixture
def stack() -> Any:
    with ExitStack() as stack:
        yield stack


async def register(plane: Plane, url: str, **fields: Any) -> fleet.DatabaseServer:
    server = fleet.DatabaseServer(admin_url=url, **fields)
    request = fleet.CreateDatabaseServerRequest(database_server=server, database_server_id="main")
    return await plane.fleet.CreateDatabaseServer(request)


async def create(plane: Plane, name: str, *, wait: bool = True, **fields: Any) -> Any:
    database = Database(postgres=Database.Postgres(server=NAME))
    return await plane.create(name, wait=wait, database=database, **fields)


def url_of(node: FakeNode, app: str, epoch: int) -> str:
    """Return the URL that a node was given for an epoch of an app."""
    starts = [request.spec for method, request in node.calls if method == "StartInstance"]
    urls = {
        spec.database_url for spec in starts if spec.name.startswith(f"apps/{app}/") and spec.epoch == epoch
    }
    (url,) = urls  # the same at each repeat
    return url


def refused(url: str) -> bool:
    try:
        ask(url, "SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


async def test_an_app_gets_a_database_of_its_own_a_login_per_epoch_and_leaves_nothing(
    plane: Plane, postgresql: Server, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server = await register(plane, postgresql.create_database(stack), app_connections=2)
    app = await create(plane, "shop")
    node = plane.nodes[0]
    first = url_of(node, "shop", 1)
    ask(first, "CREATE TABLE note AS SELECT 7 AS id")
    assert condition(app, "DatabaseReady").status == Condition.MET
    starts = [request.spec for method, request in node.calls if method == "StartInstance"]
    assert starts[0].database_pool_size == 2
    # A swap is without a gap: what is drained works until it is gone.
    node.behaviours["shop:create_app"] = Behaviour(stop_after=0.2)
    await plane.done(await plane.apps.RestartApp(pb.RestartAppRequest(name=app.name)))
    second = url_of(node, "shop", 2)
    assert ask(second, "SELECT id FROM note") == [(7,)]
    await eventually(lambda: asyncio.to_thread(refused, first))
    # The same node's next life is given the same login.
    await plane.apps.UpdateApp(pb.UpdateAppRequest(app=pb.App(name=app.name, env={"A": "1"})))
    await plane.app(app.name, lambda app: not app.reconciling and app.generation == 2)
    assert url_of(node, "shop", 2) == second
    used = fleet.DeleteDatabaseServerRequest(name=server.name)
    with pytest.raises(grpc.aio.AioRpcError) as in_use:
        await plane.fleet.DeleteDatabaseServer(used)
    assert reason_of(in_use.value) == "DATABASE_SERVER_IN_USE"
    drop = pb.DeleteAppRequest(name=app.name, data_policy=pb.DeleteAppRequest.DROP)
    await plane.done(await plane.apps.DeleteApp(drop))
    owner = login_in(first).removesuffix("_e1")
    with psycopg.connect(postgresql.url) as admin:
        named = "SELECT rolname FROM pg_roles WHERE starts_with(rolname::text, %s)"
        left = admin.execute(named, (owner,)).fetchall()
    assert left == []
    await plane.fleet.DeleteDatabaseServer(used)
    for url in (first, second):
        password = url.partition("@")[0].rpartition(":")[2]
        assert len(password) == 64
        assert password not in caplog.text


async def test_a_server_that_does_not_answer_is_told_and_waited_for(
    plane: Plane, postgresql: Server, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(turns, "REST_SECONDS", 0.1)
    await register(plane, "postgresql://admin:secret@127.0.0.1:1/apps")

    async def state() -> Any:
        return (await plane.fleet.GetDatabaseServer(fleet.GetDatabaseServerRequest(name=NAME))).state

    await eventually(state, lambda now: now == fleet.DatabaseServer.UNREACHABLE)
    operation = await create(plane, "shop", wait=False)
    waits = await plane.app(
        "apps/shop", lambda app: condition(app, "Ready").reason == "DATABASE_SERVER_UNREACHABLE"
    )
    assert waits.state == Instance.PENDING
    assert "does not answer" in condition(waits, "Ready").message
    assert "secret" not in str(waits)
    url = postgresql.create_database(stack)
    update = fleet.UpdateDatabaseServerRequest(database_server=fleet.DatabaseServer(name=NAME, admin_url=url))
    assert not (await plane.fleet.UpdateDatabaseServer(update)).admin_url
    app = await plane.done(operation)
    assert condition(app, "DatabaseReady").status == Condition.MET
    await eventually(state, lambda now: now == fleet.DatabaseServer.REACHABLE)
    # What cannot be dropped stays in sight, and is dropped once it can be.
    update.database_server.admin_url = "postgresql://admin:secret@127.0.0.1:1/apps"
    await plane.fleet.UpdateDatabaseServer(update)
    drop = pb.DeleteAppRequest(name=app.name, data_policy=pb.DeleteAppRequest.DROP)
    operation = await plane.apps.DeleteApp(drop)
    waits = await plane.app(
        "apps/shop", lambda app: condition(app, "Ready").reason == "DATABASE_SERVER_UNREACHABLE"
    )
    assert waits.state == Instance.DELETING
    update.database_server.admin_url = url
    await plane.fleet.UpdateDatabaseServer(update)
    await plane.done(operation)


async def test_an_app_on_a_server_that_will_never_answer_goes_once_that_is_forgotten(plane: Plane) -> None:
    await register(plane, "postgresql://admin:secret@127.0.0.1:1/apps")
    await create(plane, "shop", wait=False)
    await plane.app("apps/shop", lambda app: condition(app, "DatabaseReady").status == Condition.UNMET)
    drop = pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.DROP)
    operation = await plane.apps.DeleteApp(drop)
    await plane.app("apps/shop", lambda app: app.state == Instance.DELETING)
    await plane.fleet.DeleteDatabaseServer(fleet.DeleteDatabaseServerRequest(name=NAME))
    await plane.done(operation)


async def test_a_database_that_was_served_and_is_gone_is_not_replaced_unless_it_is_given_up(
    plane: Plane, postgresql: Server, stack: ExitStack
) -> None:
    url = postgresql.create_database(stack)
    await register(plane, url)
    app = await create(plane, "shop")
    owner = login_in(url_of(plane.nodes[0], "shop", 1)).removesuffix("_e1")
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f'DROP SCHEMA "{owner}"')  # type: ignore[arg-type]
    restart = pb.RestartAppRequest(name=app.name)
    assert await plane.failed(await plane.apps.RestartApp(restart)) == "DATA_MISSING"
    restart.accept_data_loss = True
    app = await plane.done(await plane.apps.RestartApp(restart))
    assert ask(url_of(plane.nodes[0], "shop", app.instances[-1].epoch), "SELECT 1") == [(1,)]
    drop = pb.DeleteAppRequest(name=app.name, data_policy=pb.DeleteAppRequest.DROP)
    await plane.done(await plane.apps.DeleteApp(drop))


async def test_an_app_begins_on_a_copy_of_a_template_and_again_where_its_data_was_given_up(
    plane: Plane, postgresql: Server, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "IN_USE_SECONDS", 0.2)
    prepared = postgresql.create_database(stack)
    ask(prepared, "CREATE TABLE note AS SELECT 7 AS id")
    template = urlsplit(prepared).path.removeprefix("/")
    await register(plane, postgresql.create_database(stack), templates=[template])
    own = Database.Postgres(server=NAME, mode=Database.Postgres.DATABASE, template=template)
    with psycopg.connect(prepared):
        operation = await plane.create("shop", wait=False, database=Database(postgres=own))
        waits = await plane.app(
            "apps/shop", lambda app: condition(app, "Ready").reason == "DATABASE_TEMPLATE_UNUSABLE"
        )
        assert "it is in use, by sessions:" in condition(waits, "Ready").message
    app = await plane.done(operation)
    assert condition(app, "DatabaseProvided").message == f"It began as a copy of {template}."
    first = url_of(plane.nodes[0], "shop", 1)
    ask(first, "INSERT INTO note VALUES (8)")
    restart = pb.RestartAppRequest(name=app.name)
    app = await plane.done(await plane.apps.RestartApp(restart))
    second = url_of(plane.nodes[0], "shop", app.instances[-1].epoch)
    assert ask(second, "SELECT id FROM note ORDER BY id") == [(7,), (8,)]
    owner = login_in(first).removesuffix("_e1")
    with psycopg.connect(postgresql.url, autocommit=True) as admin:
        admin.execute(f'DROP DATABASE "{owner}" WITH (FORCE)')  # type: ignore[arg-type]
    assert await plane.failed(await plane.apps.RestartApp(restart)) == "DATA_MISSING"
    restart.accept_data_loss = True
    app = await plane.done(await plane.apps.RestartApp(restart))
    await plane.app(app.name, lambda app: condition(app, "DatabaseProvided").status == Condition.MET)
    third = url_of(plane.nodes[0], "shop", app.instances[-1].epoch)
    assert ask(third, "SELECT id FROM note") == [(7,)]
    drop = pb.DeleteAppRequest(name=app.name, data_policy=pb.DeleteAppRequest.DROP)
    await plane.done(await plane.apps.DeleteApp(drop))


async def test_what_runs_on_a_lost_node_is_shut_out_before_it_is_started_elsewhere(
    plane: Plane, postgresql: Server, stack: ExitStack
) -> None:
    await register(plane, postgresql.create_database(stack))
    lost = plane.nodes[0]
    app = await create(plane, "shop")
    old = url_of(lost, "shop", 1)
    ask(old, "CREATE TABLE note AS SELECT 7 AS id")
    other = await plane.node("environments/default/nodes/fake-2")
    # It runs, and neither says nor answers anything.
    lost.refuse = SupervisorError("SHUTTING_DOWN", "Not now.")
    lost.mute()
    await plane.node_state(lost.node, fleet.Node.UNREACHABLE)
    with psycopg.connect(old) as writer:
        restart = pb.RestartAppRequest(name=app.name, accept_data_loss=True)
        app = await plane.done(await plane.apps.RestartApp(restart))
        with pytest.raises(psycopg.OperationalError):
            writer.execute("INSERT INTO note VALUES (8)")
    assert refused(old)
    assert ask(url_of(other, "shop", app.instances[-1].epoch), "SELECT id FROM note") == [(7,)]


async def test_an_app_moves_to_another_node_and_its_data_is_there(
    plane: Plane, postgresql: Server, stack: ExitStack
) -> None:
    await register(plane, postgresql.create_database(stack))
    app = await create(plane, "shop")
    old = url_of(plane.nodes[0], "shop", 1)
    ask(old, "CREATE TABLE note AS SELECT 7 AS id")
    other = await plane.node("environments/default/nodes/fake-2")
    move = pb.MoveAppRequest(name=app.name, node=other.node)
    app = await plane.done(await plane.apps.MoveApp(move))
    assert ask(url_of(other, "shop", app.instances[-1].epoch), "SELECT id FROM note") == [(7,)]
    await eventually(lambda: asyncio.to_thread(refused, old))


async def test_what_an_app_asks_of_its_server_is_checked(
    plane: Plane, postgresql: Server, stack: ExitStack
) -> None:
    missing = Database(postgres=Database.Postgres(server="databaseServers/none"))
    for database, reason in (
        (Database(postgres=Database.Postgres()), "INVALID_FIELD"),
        (Database(postgres=Database.Postgres(server="elsewhere")), "INVALID_FIELD"),
        (missing, "DATABASE_SERVER_NOT_FOUND"),
        (
            Database(postgres=Database.Postgres(server="databaseServers/x", extensions=["Bad name"])),
            "INVALID_FIELD",
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await plane.create("shop", database=database)
        assert reason_of(error.value) == reason
    await register(plane, postgresql.create_database(stack), max_apps=1)
    await create(plane, "shop")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await create(plane, "blog")
    assert reason_of(error.value) == "DATABASE_SERVER_FULL"
    unknown = Database(postgres=Database.Postgres(server=NAME, extensions=["vector"]))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await plane.update("apps/shop", ["database"], database=unknown)
    assert "is none that databaseServers/main allows" in str(error.value)
    other = Database(postgres=Database.Postgres(server=NAME, mode=Database.Postgres.DATABASE))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await plane.update("apps/shop", ["database"], database=other)
    assert reason_of(error.value) == "INVALID_FIELD"
    assert (await plane.get("apps/shop")).database.postgres.mode == rt.Database.Postgres.SCHEMA
    drop = pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.DROP)
    await plane.done(await plane.apps.DeleteApp(drop))
