"""A fleet on hosts that have IPv6 addresses alone: apps are made, forwarded, moved with their data, and taken
over from a node that was killed, under the rows of clients.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from appsupervisor.fleet.v1 import fleet_pb2 as fleet_pb
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec
from tests.chaos.conftest import SERVER
from tests.chaos.faults import killed
from tests.chaos.fleet import NODES, Fleet
from tests.chaos.network import require
from tests.chaos.rows import Rows
from tests.e2e.stack import DEADLINE, eventually

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.environ.get("CHAOS_ROUNDS", "1") == "1", reason="takes long: make chaos CHAOS_ROUNDS=2"
    ),
]


@pytest.fixture(scope="module")
def fleet6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Give such a fleet, with an app on PostgreSQL and one that keeps its data on its node."""
    require()
    with contextlib.ExitStack() as resources:
        fleet = Fleet(tmp_path_factory.mktemp("chaos6"), resources, ipv6=True)
        fleet.start()
        server = fleet_pb.DatabaseServer(admin_url=f"{fleet.postgres.url}/apps")
        request = fleet_pb.CreateDatabaseServerRequest(database_server=server, database_server_id="main")
        fleet.ask(lambda channel, limit: FleetStub(channel).CreateDatabaseServer(request, timeout=limit))
        fleet.create("local", isolation=InstanceSpec.SHARED)
        fleet.create("fenced", database=Database(postgres=Database.Postgres(server=SERVER)),
                     isolation=InstanceSpec.SHARED)  # fmt: skip
        yield fleet


def test_an_app_with_its_data_moves_and_one_on_postgresql_leaves_a_killed_node(fleet6: Fleet) -> None:
    local, fenced = Rows(fleet6, "local"), Rows(fleet6, "fenced")
    with local, fenced:
        for rows in (local, fenced):
            rows.go_on()
        source = fleet6.settles("local")
        target = next(it for it in NODES if it != source)
        moved = fleet6.wait(fleet6.move("local", target), 2 * DEADLINE)
        assert moved.WhichOneof("result") == "response", moved
        local.go_on()
        eventually(lambda: fleet6.copies("local") == [target], "one node has its data")
        home = fleet6.settles("fenced")
        with killed(fleet6.nodes[home]):
            fleet6.settles("fenced", but=home)
            fenced.go_on()
        with killed(fleet6.planes[fleet6.leader()]):
            done = fleet6.wait(fleet6.restart("fenced"), 2 * DEADLINE)
            assert done.WhichOneof("result") == "response", done
        fleet6.is_whole()
        for rows in (local, fenced):
            rows.go_on()
    for rows in (local, fenced):
        print(rows.summary())
        rows.judge(fleet6.settles(rows.app_id), one_writer=True)
