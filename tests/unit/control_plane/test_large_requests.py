"""A request as large as the transport takes is answered before anything in it is walked."""

from typing import Any

import pytest
from google.protobuf.message import Message

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from services.control_plane.catalog import changes
from services.control_plane.fleet import fleet as fleet_module
from services.control_plane.rules import sizes
from services.rpc.server import MAX_REQUEST_BYTES
from tests.unit.control_plane.conftest import Refused, Server
from tests.unit.control_plane.test_servicers import create, node, update

MANY = {f"k{n:06} bad": "" for n in range(60_000)}


def large(kind: str) -> list[tuple[str, str, Message]]:
    """Return requests of nearly a mebibyte in which one field is too large."""
    fields: dict[str, Any] = {
        "labels": MANY,
        "annotations": MANY,
        "env": MANY,
        "secret_env": MANY,
        "domains": ["ä.example"] * 60_000,
        "display_name": "ä" * 400_000,
        "entrypoint": "a." * 400_000,
    }
    app = pb.App(**{"entrypoint": "a:b", kind: fields[kind]})
    of_app = pb.App(name="apps/shop", **{kind: fields[kind]})
    return [
        ("CreateApp", f"app.{kind}", pb.CreateAppRequest(app=app, app_id="x")),
        ("UpdateApp", f"app.{kind}", pb.UpdateAppRequest(app=of_app)),
    ]


def config() -> list[tuple[str, str, Message]]:
    request = create("x")
    request.app.config.update({"list": [float("nan")] * 60_000})  # type: ignore[attr-defined]
    return [("CreateApp", "app.config", request)]


def of_the_fleet() -> list[tuple[str, str, Message]]:
    registration = node()
    registration.node.labels.update(MANY)
    code = node(modules=["not one"] * 100_000)
    environment = fleet.Environment(labels=MANY)
    made = fleet.CreateEnvironmentRequest(environment=environment, environment_id="prod")
    return [
        ("RegisterNode", "node.labels", registration),
        ("RegisterNode", "node.modules", code),
        ("CreateEnvironment", "environment.labels", made),
    ]


OF_APPS = frozenset(pb.App.DESCRIPTOR.fields_by_name)

CASES = [
    *(case for kind in (*sizes.ENTRIES, *sizes.CHARACTERS) if kind in OF_APPS for case in large(kind)),
    *config(),
    *of_the_fleet(),
]


@pytest.mark.parametrize(("method", "field", "request_"), CASES, ids=[f"{m} {f}" for m, f, _ in CASES])
def test_what_is_too_large_is_refused_before_it_is_walked(
    server: Server,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    field: str,
    request_: Any,
) -> None:
    def walk(*_: Any, **__: Any) -> None:
        raise AssertionError("walked")

    for module, names in (
        (changes, ("normalize_app", "app_violations", "apply_update")),
        (fleet_module, ("environment_violations", "node_violations")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, walk)
    assert request_.ByteSize() <= 1.2 * MAX_REQUEST_BYTES
    error = refused(method, request_)
    assert error.info.reason == "INVALID_FIELD"
    assert error.fields == {field}


def test_bounds_are_those_of_the_rules(server: Server, refused: Refused) -> None:
    server(
        "CreateApp",
        create("most", labels={f"k{n}": "" for n in range(64)}, env={f"K{n}": "" for n in range(256)}),
    )
    server("CreateApp", create("domains", domains=[f"d{n}.example" for n in range(32)]))
    for fields in (
        {"labels": {f"k{n}": "" for n in range(65)}},
        {"env": {f"K{n}": "" for n in range(257)}},
        {"domains": [f"e{n}.example" for n in range(33)]},
    ):
        assert refused("CreateApp", create("more", **fields)).fields == {f"app.{next(iter(fields))}"}


def test_a_name_or_a_mask_of_any_length_is_refused(server: Server, refused: Refused) -> None:
    server("CreateApp", create())
    assert refused("GetApp", pb.GetAppRequest(name="apps" + "/" * 900_000)).fields == {"name"}
    assert refused("UpdateApp", update(paths="labels " * 100_000)).fields == {"update_mask"}
