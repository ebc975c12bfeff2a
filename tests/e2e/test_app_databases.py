"""Real apps on a real database server, in a shared process and in one of their own; no log has a password."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.postgresql import Server

POSTGRES = Database(postgres=Database.Postgres(server="databaseServers/main"))
TELLS = """
import os, sys
import psycopg
def create_app(context):
    with psycopg.connect(context.database_url) as db:
        db.execute("CREATE TABLE IF NOT EXISTS visit (app text)")
        db.execute("INSERT INTO visit VALUES (%s)", (context.app,))
        visits = db.execute("SELECT string_agg(app, ' ') FROM visit").fetchone()[0]
    print("my database is", context.database_url, os.environ.get("DATABASE_URL"), file=sys.stderr)
    body = f"{visits} {context.database_pool} {os.environ.get('DATABASE_POOL_SIZE', '-')}".encode()
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
    return app
"""


@pytest.fixture
def own_stack(tmp_path: Path, postgresql: Server) -> Iterator[Stack]:
    """Give a stack with a registered server and a folder of the test's own code."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my/tells.py").write_text(TELLS)
    stack = Stack(tmp_path / "stack", app_dirs=(tmp_path / "my",))
    with ExitStack() as databases:
        url = postgresql.create_database(databases)
        try:
            stack.start()
            server = fleet.DatabaseServer(admin_url=url, app_connections=2)
            request = fleet.CreateDatabaseServerRequest(database_server=server, database_server_id="main")
            stack.fleet.CreateDatabaseServer(request, timeout=DEADLINE)
            yield stack
        finally:
            stack.clean_up()


def logged(stack: Stack, app_id: str) -> str:
    """Return an app's log; nothing while it does not tell of both starts."""
    tail = stack.apps.TailAppLogs(catalog.TailAppLogsRequest(name=f"apps/{app_id}"), timeout=DEADLINE)
    text = "\n".join(entry.text for message in tail for entry in message.entries)
    return text if text.count("my database is ***") == 2 else ""


def test_apps_of_both_kinds_have_databases_of_their_own_and_no_log_has_a_password(own_stack: Stack) -> None:
    for tier in (InstanceSpec.SHARED, InstanceSpec.PROCESS):
        name = InstanceSpec.IsolationTier.Name(tier).lower()
        own_stack.create(name, "tells:create_app", database=POSTGRES, isolation=tier)
        pool = "2 2" if tier == InstanceSpec.PROCESS else "2 -"
        assert own_stack.http(name) == (200, f"{name} {pool}")
        restart = catalog.RestartAppRequest(name=f"apps/{name}")
        own_stack.result(own_stack.apps.RestartApp(restart, timeout=DEADLINE))
        assert own_stack.http(name) == (200, f"{name} {name} {pool}")
        told = eventually(lambda name=name: logged(own_stack, name), "the start is in its log")
        assert "as_" not in told
        delete = catalog.DeleteAppRequest(name=f"apps/{name}", data_policy=catalog.DeleteAppRequest.DROP)
        own_stack.wait(own_stack.apps.DeleteApp(delete, timeout=DEADLINE))
    told = own_stack.control_plane.text() + own_stack.nodes["node-1"].text()
    assert ":@" not in told
    assert "postgresql://as_" not in told


@pytest.mark.slow
def test_an_app_moves_to_another_server_and_no_request_is_lost(own_stack: Stack) -> None:
    with ExitStack() as stack:
        other = Server(stack)
        server = fleet.DatabaseServer(admin_url=other.create_database(stack), app_connections=2)
        request = fleet.CreateDatabaseServerRequest(database_server=server, database_server_id="other")
        own_stack.fleet.CreateDatabaseServer(request, timeout=DEADLINE)
        own_stack.create("shop", "tells:create_app", database=POSTGRES)
        assert own_stack.http("shop") == (200, "shop 2 -")
        answers: list[int] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                answers.append(own_stack.http("shop")[0])

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            update = catalog.UpdateAppRequest(app=catalog.App(name="apps/shop"))
            update.app.database.postgres.server = "databaseServers/other"
            update.update_mask.paths.append("database.postgres.server")
            app = own_stack.result(own_stack.apps.UpdateApp(update, timeout=DEADLINE))
        finally:
            over.set()
            asking.join()
        assert app.database.postgres.server == "databaseServers/other"
        # They are held while it is stopped; 503 tells to come again where that has taken longer.
        assert set(answers) <= {200, 503}
        assert own_stack.http("shop") == (200, "shop shop 2 -")
        delete = catalog.DeleteAppRequest(name="apps/shop", data_policy=catalog.DeleteAppRequest.DROP)
        own_stack.wait(own_stack.apps.DeleteApp(delete, timeout=DEADLINE))
