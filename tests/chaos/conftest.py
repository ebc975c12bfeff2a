"""The fleet on hosts of its own, and three apps on it, each with another promise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet_pb
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec
from tests.chaos.fleet import Fleet
from tests.chaos.network import require

SERVER = "databaseServers/main"


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Give the fleet, with the apps `local`, `fenced`, `strict` on it; who harms it makes it whole again."""
    require()
    with contextlib.ExitStack() as resources:
        fleet = Fleet(tmp_path_factory.mktemp("chaos"), resources)
        fleet.start()
        server = fleet_pb.DatabaseServer(admin_url=f"{fleet.postgres.url}/apps")
        request = fleet_pb.CreateDatabaseServerRequest(database_server=server, database_server_id="main")
        fleet.ask(lambda channel, limit: FleetStub(channel).CreateDatabaseServer(request, timeout=limit))
        # Its data on its node; on PostgreSQL, whatever answers; with no database, and never without a lease.
        fleet.create("local", isolation=InstanceSpec.SHARED)
        fleet.create("fenced", database=Database(postgres=Database.Postgres(server=SERVER)),
                     isolation=InstanceSpec.SHARED)  # fmt: skip
        fleet.create("strict", database=Database(no_database=Database.NoDatabase()),
                     isolation=InstanceSpec.SHARED, availability=InstanceSpec.CONSISTENT)  # fmt: skip
        yield fleet


@pytest.fixture(scope="session")
def slow(fleet: Fleet) -> str:
    """Give an app on PostgreSQL that takes its time to start."""
    app = catalog.App()
    app.config.update({"start_seconds": 2})
    fleet.create("slow", database=Database(postgres=Database.Postgres(server=SERVER)), config=app.config,
                 isolation=InstanceSpec.SHARED)  # fmt: skip
    return "slow"


@pytest.fixture(scope="session")
def luggage(fleet: Fleet) -> str:
    """Give an app that has something to carry."""
    app = catalog.App()
    app.config.update({"padding_mib": 16})
    fleet.create("luggage", isolation=InstanceSpec.SHARED, config=app.config)
    return "luggage"
