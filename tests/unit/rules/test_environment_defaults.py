"""What an environment gives its apps: where they say nothing themselves, and never against what they say."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import AppDefaults, Environment
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec, Limits
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.rules.app_rules import app_violations
from services.control_plane.rules.environment_defaults import default_violations, with_defaults
from services.control_plane.rules.environment_masks import updated_environment
from services.rpc.errors import SupervisorError

MAIN, OTHER = "databaseServers/main", "databaseServers/other"
NONE = Database(no_database=Database.NoDatabase())
POSTGRES = Database(postgres=Database.Postgres())
DEFAULTS = AppDefaults(
    database_server=MAIN,
    activation=InstanceSpec.ON_REQUEST,
    idle_timeout=Duration(seconds=60),
    isolation=InstanceSpec.THREAD,
    limits=Limits(max_threads=4, max_queued_requests=9, request_timeout=Duration(seconds=5)),
    node_selector={"disk": "ssd", "rack": "1"},
    availability=InstanceSpec.CONSISTENT,
    failover=App.AUTOMATIC,
)


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({"database": POSTGRES}, "database", Database(postgres=Database.Postgres(server=MAIN))),
        (
            {"database": Database(postgres=Database.Postgres(server=OTHER))}, "database",
            Database(postgres=Database.Postgres(server=OTHER)),
        ),
        ({"database": NONE}, "database", NONE),
        ({}, "database", Database()),
        ({}, "activation", InstanceSpec.ON_REQUEST),
        ({"activation": InstanceSpec.EAGER}, "activation", InstanceSpec.EAGER),
        ({}, "idle_timeout", Duration(seconds=60)),
        ({"idle_timeout": Duration(seconds=7)}, "idle_timeout", Duration(seconds=7)),
        ({"activation": InstanceSpec.EAGER}, "idle_timeout", Duration()),
        ({}, "isolation", InstanceSpec.THREAD),
        ({"isolation": InstanceSpec.PROCESS}, "isolation", InstanceSpec.PROCESS),
        ({}, "limits", DEFAULTS.limits),
        (
            {"limits": Limits(max_threads=2, max_queued_requests=0)}, "limits",
            Limits(max_threads=2, max_queued_requests=0, request_timeout=Duration(seconds=5)),
        ),
        ({"node_selector": {"rack": "2"}}, "node_selector", {"disk": "ssd", "rack": "2"}),
        ({}, "availability", InstanceSpec.CONSISTENT),
        ({"availability": InstanceSpec.AVAILABLE}, "availability", InstanceSpec.AVAILABLE),
        ({}, "failover", App.FAILOVER_UNSPECIFIED),
        ({"database": NONE}, "failover", App.AUTOMATIC),
        ({"database": NONE, "failover": App.MANUAL}, "failover", App.MANUAL),
    ],
)  # fmt: skip
def test_a_default_is_taken_where_an_app_says_nothing_and_it_fits(
    given: dict[str, Any], field: str, expected: Any
) -> None:
    app = App(entrypoint="a:b", **given)
    before = App.FromString(app.SerializeToString())
    full = with_defaults(app, DEFAULTS)
    assert getattr(full, field) == expected
    assert app == before, "what was asked for is left alone"
    assert app_violations(normalize_app(full)) == []
    assert with_defaults(app, AppDefaults()) == app


def test_defaults_are_by_the_rules_of_an_apps_fields() -> None:
    assert default_violations(AppDefaults(), "d") == default_violations(DEFAULTS, "d") == []
    wrong = AppDefaults(
        database_server="main",
        idle_timeout=Duration(),
        limits=Limits(max_threads=9_999),
        node_selector={"-": ""},
        failover=9,  # type: ignore[arg-type]
    )
    assert {it.field for it in default_violations(wrong, "d")} == {
        "d.database_server", "d.idle_timeout", "d.limits.max_threads", 'd.node_selector["-"]', "d.failover",
    }  # fmt: skip


def test_defaults_are_updated_as_a_whole_or_one_by_one() -> None:
    before = Environment(name="environments/x", app_defaults=DEFAULTS)
    patch = Environment(app_defaults=AppDefaults(activation=InstanceSpec.EAGER))

    def updated(*paths: str, patch: Environment = patch) -> Environment:
        return updated_environment(before, patch, FieldMask(paths=paths))

    assert updated("app_defaults") == Environment(name=before.name, app_defaults=patch.app_defaults)
    one = updated("app_defaults.activation").app_defaults
    assert (one.activation, one.limits) == (InstanceSpec.EAGER, DEFAULTS.limits)
    assert not updated("app_defaults.limits").app_defaults.HasField("limits")
    assert not updated("app_defaults", patch=Environment()).HasField("app_defaults")
    for path in ("app_defaults.none", "app_defaults.limits.max_threads"):
        with pytest.raises(SupervisorError) as refused:
            updated(path)
        assert refused.value.reason == "INVALID_FIELD"
