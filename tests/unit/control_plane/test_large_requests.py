"""A request as large as the transport takes is answered before anything in it is walked."""

from collections.abc import Callable
from functools import partial
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


def many() -> dict[str, str]:
    return {f"k{n:06} bad": "" for n in range(60_000)}


LARGE: dict[str, Callable[[], Any]] = {
    "labels": many,
    "annotations": many,
    "env": many,
    "secret_env": many,
    "domains": lambda: ["ä.example"] * 60_000,
    "display_name": lambda: "ä" * 400_000,
    "entrypoint": lambda: "a." * 400_000,
}
"""Of each field of an app what is too large, and makes a request of nearly a mebibyte."""


def creates(kind: str) -> Message:
    return pb.CreateAppRequest(app=pb.App(**{"entrypoint": "a:b", kind: LARGE[kind]()}), app_id="x")


def updates(kind: str) -> Message:
    return pb.UpdateAppRequest(app=pb.App(name="apps/shop", **{kind: LARGE[kind]()}))


def config() -> Message:
    request = create("x")
    request.app.config.update({"list": [float("nan")] * 60_000})  # type: ignore[attr-defined]
    return request


def labels_of_a_node() -> Message:
    registration = node()
    registration.node.labels.update(many())
    return registration


def environment() -> Message:
    labelled = fleet.Environment(labels=many())
    return fleet.CreateEnvironmentRequest(environment=labelled, environment_id="prod")


OF_APPS = [kind for kind in (*sizes.ENTRIES, *sizes.CHARACTERS) if kind in pb.App.DESCRIPTOR.fields_by_name]

# Made when its test runs: each process of the tests collects all of them.
CASES: list[tuple[str, str, Callable[[], Message]]] = [
    *(("CreateApp", f"app.{kind}", partial(creates, kind)) for kind in OF_APPS),
    *(("UpdateApp", f"app.{kind}", partial(updates, kind)) for kind in OF_APPS),
    ("CreateApp", "app.config", config),
    ("RegisterNode", "node.labels", labels_of_a_node),
    ("RegisterNode", "node.modules", lambda: node(modules=["not one"] * 100_000)),
    ("CreateEnvironment", "environment.labels", environment),
]


@pytest.mark.parametrize(("method", "field", "make"), CASES, ids=[f"{m} {f}" for m, f, _ in CASES])
def test_what_is_too_large_is_refused_before_it_is_walked(
    server: Server,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    field: str,
    make: Callable[[], Message],
) -> None:
    def walk(*_: Any, **__: Any) -> None:
        raise AssertionError("walked")

    for module, names in (
        (changes, ("normalize_app", "app_violations", "apply_update")),
        (fleet_module, ("environment_violations", "node_violations")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, walk)
    request = make()
    assert request.ByteSize() <= 1.2 * MAX_REQUEST_BYTES
    error = refused(method, request)
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
