"""Apps whose databases move between two servers: all arrives, and any fault leaves one owner that serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from google.longrunning.operations_pb2 import CancelOperationRequest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Database, Instance
from services.control_plane.databases import relocation
from services.control_plane.databases.names import owner_of
from services.rpc.errors import SupervisorError
from tests.eventually import eventually
from tests.integration.control_plane.plane import Plane, condition
from tests.integration.databases.conftest import ask
from tests.integration.databases.test_apps_on_a_server import refused, url_of
from tests.postgresql import Server

pytestmark = pytest.mark.slow  # there is a second server to be made and started

SOURCE, TARGET = "databaseServers/one", "databaseServers/two"
FILLED = """
CREATE TYPE mood AS ENUM ('well', 'ill');
CREATE TABLE note (id serial PRIMARY KEY, text text NOT NULL CHECK (text <> ''), mood mood DEFAULT 'well');
CREATE TABLE tag (note integer REFERENCES note ON DELETE CASCADE, name text, UNIQUE (note, name));
CREATE INDEX ON note (lower(text));
CREATE TABLE place (at vector(2));
INSERT INTO place VALUES ('[1,2]');
CREATE INDEX ON place USING hnsw (at vector_l2_ops);
CREATE VIEW ill AS SELECT * FROM note WHERE mood = 'ill';
CREATE FUNCTION twice(n integer) RETURNS integer LANGUAGE sql AS 'SELECT 2 * n';
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.text = NEW.text || ''!''; RETURN NEW; END';
INSERT INTO note (text) SELECT 'note ' || n FROM generate_series(1, 2000) AS n;
INSERT INTO tag SELECT id, 'even' FROM note WHERE id % 2 = 0;
CREATE TRIGGER touched BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION touch();
COMMENT ON TABLE note IS 'what was noted';
"""


@pytest.fixture(scope="module")
def second() -> Iterator[Server]:
    """A second PostgreSQL server: what is one cannot be moved to."""
    with ExitStack() as stack:
        yield Server(stack)


@pytest.fixture
async def plane(tmp_path: Path, postgresql: Server, second: Server) -> AsyncIterator[Plane]:
    plane = Plane(tmp_path, node_timeout=1.0)
    with ExitStack() as stack:
        await plane.start()
        try:
            for name, server in (("one", postgresql), ("two", second)):
                admin_url = server.create_database(stack)
                request = fleet.CreateDatabaseServerRequest(
                    database_server=fleet.DatabaseServer(admin_url=admin_url, allowed_extensions=["vector"]),
                    database_server_id=name,
                )
                await plane.fleet.CreateDatabaseServer(request)
            await plane.node()
            yield plane
        finally:
            await plane.close()
            for server in (postgresql, second):  # roles outlive their databases
                _forget(server)


def _forget(server: Server) -> None:
    with psycopg.connect(server.url, autocommit=True) as admin:
        query = r"SELECT datname FROM pg_database WHERE datname LIKE 'as\_shop\_%'"
        for (name,) in admin.execute(query).fetchall():
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]


async def create(
    plane: Plane, mode: Any = Database.Postgres.SCHEMA, *, template: str = "", **fields: Any
) -> pb.App:
    own = Database.Postgres(server=SOURCE, mode=mode, extensions=["vector"], template=template)
    return await plane.create("shop", database=Database(postgres=own), **fields)


async def move(plane: Plane, target: str = TARGET, **fields: Any) -> Any:
    app = pb.App(name="apps/shop", **fields)
    app.database.postgres.server = target
    request = pb.UpdateAppRequest(app=app)
    request.update_mask.paths.extend(["database.postgres.server", *fields])
    return await plane.apps.UpdateApp(request)


def newest_url(plane: Plane, app: pb.App) -> str:
    return url_of(plane.nodes[0], "shop", max(it.epoch for it in app.instances))


async def drop(plane: Plane) -> None:
    request = pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.DROP)
    await plane.done(await plane.apps.DeleteApp(request))


def roles(server: Server, app: pb.App) -> list[str]:
    """Return what a server has of an app."""
    with psycopg.connect(server.url) as admin:
        query = "SELECT rolname FROM pg_roles WHERE starts_with(rolname::text, %s)"
        return [name for (name,) in admin.execute(query, (owner_of(app.name, app.uid),)).fetchall()]


@pytest.mark.parametrize("mode", [Database.Postgres.SCHEMA, Database.Postgres.DATABASE])
async def test_a_database_moves_with_all_that_is_in_it_and_the_former_one_goes(
    plane: Plane, postgresql: Server, second: Server, mode: Any
) -> None:
    app = await create(plane, mode)
    old = newest_url(plane, app)
    ask(old, FILLED)
    operation = await move(plane, env={"A": "1"})
    app = await plane.done(operation)
    assert app.database.postgres.server == TARGET
    assert app.env["A"] == "1"
    new = newest_url(plane, app)
    assert await eventually(lambda: asyncio.to_thread(refused, old))
    assert ask(new, "SELECT count(*), max(id) FROM note") == [(2000, 2000)]
    assert ask(new, "INSERT INTO note (text) VALUES ('next') RETURNING id, mood::text") == [(2001, "well")]
    assert ask(new, "UPDATE note SET text = 'x' WHERE id = 1 RETURNING text") == [("x!",)]
    assert ask(new, "SELECT twice(4), obj_description('note'::regclass)") == [(8, "what was noted")]
    assert ask(new, "SELECT at <-> '[1,3]' FROM place") == [(1.0,)]
    assert ask(new, "DELETE FROM note WHERE id = 2; SELECT count(*) FROM tag") == []
    assert ask(new, "SELECT count(*) FROM tag") == [(999,)]
    app = await plane.app("apps/shop", lambda app: not app.reconciling)
    move_told = app.database_move
    assert (move_told.state, move_told.leftover_server) == (pb.DatabaseMove.DONE, "")
    assert move_told.stop_duration.ToMicroseconds() > 0
    assert move_told.copied_bytes > 0
    assert roles(postgresql, app) == []
    page = await plane.apps.ListAppEvents(pb.ListAppEventsRequest(parent="apps/shop"))
    (told,) = [it.message for it in page.app_events if it.type == "DatabaseMoved"]
    assert "writes were stopped for" in told
    await drop(plane)
    assert roles(second, app) == []


async def test_a_database_that_began_as_a_copy_moves_to_a_server_without_the_template(
    plane: Plane, postgresql: Server
) -> None:
    with ExitStack() as stack:
        prepared = postgresql.create_database(stack)
        ask(prepared, FILLED.replace("CREATE TABLE place", "CREATE EXTENSION vector; CREATE TABLE place"))
        template = urlsplit(prepared).path.removeprefix("/")
        offered = fleet.DatabaseServer(name=SOURCE, templates=[template])
        await plane.fleet.UpdateDatabaseServer(fleet.UpdateDatabaseServerRequest(database_server=offered))
        app = await create(plane, Database.Postgres.DATABASE, template=template)
        ask(newest_url(plane, app), "INSERT INTO note (text) VALUES ('mine')")
        app = await plane.done(await move(plane))
        assert ask(newest_url(plane, app), "SELECT count(*), max(text) FROM note") == [(2001, "note 999")]
        await drop(plane)


async def test_a_stopped_app_moves_and_stays_stopped_and_moves_back(
    plane: Plane, postgresql: Server, second: Server
) -> None:
    app = await create(plane)
    ask(newest_url(plane, app), "CREATE TABLE note AS SELECT 7 AS id")
    await plane.done(await plane.apps.StopApp(pb.StopAppRequest(name=app.name)))
    app = await plane.done(await move(plane))
    assert (app.database.postgres.server, app.state) == (TARGET, Instance.STOPPED)
    await plane.app("apps/shop", lambda app: not app.reconciling)
    app = await plane.done(await move(plane, SOURCE))
    app = await plane.done(await plane.apps.StartApp(pb.StartAppRequest(name=app.name)))
    assert ask(newest_url(plane, app), "SELECT id FROM note") == [(7,)]
    await plane.app("apps/shop", lambda app: not app.reconciling)
    assert roles(second, app) == []
    await drop(plane)


async def test_a_copy_that_is_not_the_same_leaves_the_app_where_it_was(
    plane: Plane, second: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await create(plane)
    ask(newest_url(plane, app), FILLED)
    stream = relocation.stream

    async def with_a_row_more(tools: Any, source: str, target: str, schema: str, copied: Any) -> int:
        size = await stream(tools, source, target, schema, copied)
        await asyncio.to_thread(ask, target, "INSERT INTO tag VALUES (1, 'odd')")
        return size

    monkeypatch.setattr(relocation, "stream", with_a_row_more)
    ended = await plane.wait(await move(plane))
    assert "rows of" in ended.error.message
    app = await plane.app("apps/shop", lambda app: not app.reconciling and app.state == Instance.RUNNING)
    assert app.database.postgres.server == SOURCE
    assert app.database_move.state == pb.DatabaseMove.CALLED_OFF
    assert app.database_move.reason == "DATABASE_NOT_MOVED"
    assert ask(newest_url(plane, app), "SELECT count(*) FROM note") == [(2000,)]
    assert roles(second, app) == []
    monkeypatch.undo()
    assert (await plane.done(await move(plane))).database.postgres.server == TARGET
    await plane.app("apps/shop", lambda app: not app.reconciling)
    await drop(plane)


async def test_a_move_is_cancelled_in_the_middle_and_a_new_leader_goes_on_with_one(
    plane: Plane, second: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await create(plane)
    old = newest_url(plane, app)
    ask(old, FILLED)
    stream, begun = relocation.stream, asyncio.Event()

    async def hang(*arguments: Any) -> int:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(relocation, "stream", hang)
    operation = await move(plane)
    await begun.wait()
    waits = await plane.app("apps/shop", lambda app: condition(app, "Ready").reason == "DatabaseMoving")
    assert waits.state == Instance.PENDING
    assert await asyncio.to_thread(refused, old)
    await plane.operations.CancelOperation(CancelOperationRequest(name=operation.name))
    app = await plane.app("apps/shop", lambda app: not app.reconciling and app.state == Instance.RUNNING)
    assert app.database.postgres.server == SOURCE
    assert ask(newest_url(plane, app), "SELECT count(*) FROM note") == [(2000,)]
    assert roles(second, app) == []
    begun.clear()
    operation = await move(plane)
    await begun.wait()
    monkeypatch.setattr(relocation, "stream", stream)
    await plane.restart()  # in the middle of the copy
    app = await plane.done(operation)
    assert app.database.postgres.server == TARGET
    assert ask(newest_url(plane, app), "SELECT count(*) FROM note") == [(2000,)]
    await plane.app("apps/shop", lambda app: not app.reconciling)
    await drop(plane)


async def test_what_hinders_a_move_is_told_before_anything_is_stopped(
    plane: Plane, postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await create(plane)
    ask(newest_url(plane, app), "SELECT lo_create(0)")
    ended = await plane.wait(await move(plane))
    assert "large objects" in ended.error.message
    again = fleet.DatabaseServer(admin_url=postgresql.url, allowed_extensions=["vector"])
    request = fleet.CreateDatabaseServerRequest(database_server=again, database_server_id="again")
    await plane.fleet.CreateDatabaseServer(request)
    ended = await plane.wait(await move(plane, "databaseServers/again"))
    assert "one and the same" in ended.error.message

    async def none(*arguments: Any) -> Any:
        raise SupervisorError("DATABASE_NOT_MOVED", "No pg_dump.")

    monkeypatch.setattr(relocation, "find_tools", none)
    ask(newest_url(plane, app), "SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    assert await plane.failed(await move(plane)) == "DATABASE_NOT_MOVED"
    app = await plane.app("apps/shop", lambda app: not app.reconciling)
    assert [it.epoch for it in app.instances] == [1]
    assert condition(app, "Ready").status == Condition.MET
    await drop(plane)
