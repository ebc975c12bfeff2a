"""Why an app has the availability that it has, as it is stored: with what was filled in for it."""

import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec
from services.spec.availability import explained_availability
from services.spec.defaults import fill_runtime

A, C = InstanceSpec.AVAILABLE, InstanceSpec.CONSISTENT
SQLITE = Database(sqlite=Database.Sqlite())
POSTGRES = Database(postgres=Database.Postgres(server="databaseServers/main"))
NONE = Database(no_database=Database.NoDatabase())
EXTERNAL = Database(external=Database.External())


@pytest.mark.parametrize(
    ("database", "asked", "alone", "told"),
    [
        (SQLITE, None, False, (A, App.DATA_ON_NODE)),
        (POSTGRES, None, False, (A, App.DATABASE_FENCED)),
        (NONE, None, False, (A, App.WITHOUT_DATABASE)),
        (EXTERNAL, None, False, (C, App.DATABASE_SHARED)),
        (EXTERNAL, None, True, (A, App.ONLY_NODE)),
        (EXTERNAL, C, True, (C, App.ASKED_FOR)),
        (EXTERNAL, A, False, (A, App.ASKED_FOR)),
        (SQLITE, C, False, (C, App.ASKED_FOR)),
    ],
)
def test_what_nobody_asked_for_is_not_told_as_asked_for(
    database: Database, asked: int | None, alone: bool, told: tuple[int, int]
) -> None:
    spec = App(database=database, availability=asked)
    fill_runtime(spec)
    assert explained_availability(spec, alone=alone) == told
