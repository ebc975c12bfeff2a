"""Apps behind the shipped PgBouncer: pooled by transaction, shut out through it, and none hangs."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from psycopg import AsyncConnection

from appsupervisor.fleet.v1.fleet_pb2 import DatabaseServer
from tests.conftest import ROOT, tool_path
from tests.eventually import eventually
from tests.integration.databases.conftest import DATABASE, NAME, SCHEMA, Sql, app, ask, login_in
from tests.postgresql import Server

SHIPPED = ROOT / "compose/pgbouncer"
EACH_A_DATABASE = (1, 19)
"""The version from which on one database tells of the logins of all."""
pytestmark = pytest.mark.tool("pgbouncer")


@dataclass
class Bouncer:
    """PgBouncer in front of a registered server."""

    server: Sql
    process: subprocess.Popen[bytes]
    version: tuple[int, ...]


@pytest.fixture
def bouncer(postgresql: Server) -> Iterator[Bouncer]:
    with ExitStack() as stack:
        url = postgresql.create_database(stack)
        server = Sql(url)
        database = urlsplit(url).path.removeprefix("/")
        server.admin((SHIPPED / "login.sql").read_text())
        stack.callback(server.admin, "DROP OWNED BY pgbouncer; DROP ROLE pgbouncer")
        # Not under pytest's directory: where this is root, PgBouncer runs as whom the server runs as.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bouncer")))
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        place = parse_qs(urlsplit(url).query)["host"][0]
        config = (SHIPPED / "pgbouncer.ini").read_text()
        for shipped, here in (
            ("\napps = host=db.example port=5432\n", f"\n{database} = host={place}\n"),
            ("listen_port = 6432\n", f"listen_port = {port}\n"),
            ("auth_file = users.txt\n", f"auth_file = {folder}/users.txt\n"),
            ("default_pool_size = 5\n", "default_pool_size = 3\n"),
        ):
            assert config.count(shipped) == 1
            config = config.replace(shipped, here)
        program = shutil.which("pgbouncer", path=tool_path())
        assert program is not None
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        version = tuple(int(part) for part in re.findall(r"\d+", told.splitlines()[0])[:2])
        if version >= EACH_A_DATABASE:
            shipped = "; * = host=db.example port=5432 auth_dbname=apps\n"
            assert config.count(shipped) == 1
            config = config.replace(shipped, f"* = host={place} auth_dbname={database}\n")
        (folder / "pgbouncer.ini").write_text(config)
        (folder / "users.txt").write_text('"pgbouncer" ""\n')
        folder.chmod(0o755)
        user = [f"--user={pwd.getpwuid(Path(place).stat().st_uid).pw_name}"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [program, "--quiet", *user, str(folder / "pgbouncer.ini")], cwd=folder, stdin=subprocess.DEVNULL
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        known = DatabaseServer()
        known.CopyFrom(server.servers[NAME].server)
        known.app_address = f"127.0.0.1:{port}"
        server.servers[NAME] = replace(server.servers[NAME], server=known)
        yield Bouncer(server, process, version)


async def client(url: str) -> AsyncConnection[tuple[object, ...]]:
    # Between two transactions it may get another connection of the server: nothing prepared may be relied on.
    return await AsyncConnection.connect(url, autocommit=True, prepare_threshold=None, connect_timeout=30)


def is_up(url: str) -> bool:
    try:
        return ask(url, "SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize("mode", [SCHEMA, DATABASE], ids=["schema", "database"])
async def test_a_new_epoch_shuts_the_old_one_out_through_a_pooler_and_nobody_hangs(
    bouncer: Bouncer, mode: Any
) -> None:
    if mode == DATABASE and bouncer.version < EACH_A_DATABASE:
        pytest.skip(f"PgBouncer {bouncer.version} has no auth_dbname: it asks in the app's own database")
    databases, shop = bouncer.server.databases(), app("shop", mode)
    old = await databases.prepare(shop, 1, (), must_exist=False)
    assert await eventually(lambda: asyncio.to_thread(is_up, old.url))
    clients = [await client(old.url) for _ in range(12)]
    await clients[0].execute("CREATE TABLE note (id int)")
    await asyncio.gather(*(it.execute("INSERT INTO note VALUES (7)") for it in clients))
    # Twelve clients are served by as many connections as the app's pool may have.
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
    ((count,),) = bouncer.server.admin(query, login_in(old.url))
    assert 1 <= int(count) <= 3
    new = await databases.prepare(shop, 2, (), must_exist=True)
    told = await asyncio.wait_for(
        asyncio.gather(
            *(it.execute("INSERT INTO note VALUES (8)") for it in clients), return_exceptions=True
        ),
        60,
    )  # by default it would be twice as long
    assert all(isinstance(it, psycopg.OperationalError) for it in told), told
    assert not await asyncio.to_thread(is_up, old.url)
    assert await eventually(lambda: asyncio.to_thread(is_up, new.url))
    assert ask(new.url, "SELECT count(*), max(id) FROM note") == [(12, 7)]
    for it in clients:
        await it.close()
    await databases.end(shop, drop=True)
