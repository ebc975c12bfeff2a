"""What holds for every method: secrets are told nowhere, and faults of ours in a fixed sentence."""

from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as lro
from google.protobuf.message import Message

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from tests.unit.control_plane.conftest import Refused, Server
from tests.unit.control_plane.test_servicers import create, get, update

S = grpc.StatusCode
CANARY = "canary-4711-secret"


def test_a_secret_is_in_no_answer_event_operation_error_or_log(
    server: Server, refused: Refused, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret = {"secret_env": {"TOKEN": CANARY}}
    operation = server("CreateApp", create(**secret))
    answers: list[Message] = [
        operation,
        server("CreateApp", create("only", only=True, **secret)),
        server("UpdateApp", update(secret_env={"TOKEN": CANARY + "2"}, labels={"a": "b"})),
        server("UpdateApp", update(paths="secret_env", secret_env={"OTHER": CANARY})),
        server("RestartApp", pb.RestartAppRequest(name="apps/shop")),
        server("StopApp", pb.StopAppRequest(name="apps/shop")),
        get(server),
        server("ListApps", pb.ListAppsRequest()),
        server("ListAppEvents", pb.ListAppEventsRequest(parent="apps/shop")),
        server("ListOperations", lro.ListOperationsRequest()),
    ]
    errors = [
        refused("CreateApp", create(**secret)),
        refused("CreateApp", create("x", secret_env={"1 bad": CANARY})),
        refused("CreateApp", create("x", secret_env={"A": CANARY + "\0"})),
        refused("CreateApp", create("x", secret_env={"A": CANARY}, env={"A": "b"})),
        refused("CreateApp", create("x", secret_env={f"K{n}": CANARY for n in range(300)})),
        refused("CreateApp", create("x", secret_env={"A": CANARY * 9000})),
        refused("UpdateApp", update(secret_env={"1": CANARY})),
        refused("UpdateApp", update(paths=f"secret_env.*.{CANARY.replace('-', '_')}.x")),
        refused("ListApps", pb.ListAppsRequest(filter=f'secret_env.TOKEN = "{CANARY}"')),
    ]
    for answer in answers:
        assert CANARY.encode() not in answer.SerializeToString()
    for error in errors[:-2]:
        assert CANARY not in error.message
        assert CANARY.encode() not in error.status.SerializeToString()
    assert CANARY not in caplog.text
    assert CANARY not in repr([record.__dict__ for record in caplog.records])


def test_an_unexpected_fault_is_answered_with_a_fixed_sentence_and_an_id(
    server: Server, refused: Refused, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the inside of things")

    monkeypatch.setattr(type(server.store), "events", broken)
    error = refused("ListAppEvents", pb.ListAppEventsRequest(parent="apps/shop"))
    assert (error.code, error.info.reason) == (S.INTERNAL, "INTERNAL")
    assert "inside" not in error.message
    assert error.info.metadata["request_id"] in error.message
    assert error.info.metadata["request_id"] in caplog.text


def test_a_store_that_is_closed_is_told_as_a_shutdown_that_a_retry_survives(
    server: Server, refused: Refused
) -> None:
    server.store.close()
    error = refused("CreateApp", create())
    assert (error.code, error.info.reason) == (S.UNAVAILABLE, "SHUTTING_DOWN")
    assert error.retry.retry_delay.seconds >= 1
