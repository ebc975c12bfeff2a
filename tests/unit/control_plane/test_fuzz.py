"""No request, however odd, is answered with INTERNAL or without a reason."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as lro
from google.protobuf import descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from tests.unit.control_plane.conftest import SERVICES, Refusal, Server

F = descriptor.FieldDescriptor
METHODS = {
    method.name: method.input_type
    for service in SERVICES.values()
    for method in service.methods
    if not method.server_streaming and method.name != "WaitOperation"
}
TEXTS = st.one_of(
    st.sampled_from(
        [
            *("", "shop", "apps/shop", "apps/-", "environments/default", "environments/-", "operations/1"),
            *("environments/default/nodes/n1", "n1", "127.0.0.1:80", "[::1]:1", "a:b", "a.example"),
            *("état", "name desc", "*", "labels.a", 'W/"x"', "done=true", 'metadata.target="apps/shop"'),
            *('state = "RUNNING"', "NOT name:a OR -b"),
        ]
    ),
    st.text(max_size=40),
)
SCALARS: dict[int, Any] = {
    F.CPPTYPE_STRING: TEXTS,
    F.CPPTYPE_BOOL: st.booleans(),
    F.CPPTYPE_INT32: st.one_of(st.sampled_from([0, 1, -1, 5]), st.integers(-(2**31), 2**31 - 1)),
    F.CPPTYPE_INT64: st.one_of(st.sampled_from([0, 1, -1, 60]), st.integers(-(2**63), 2**63 - 1)),
    F.CPPTYPE_DOUBLE: st.floats(),
    F.CPPTYPE_ENUM: st.one_of(st.integers(0, 9), st.integers(-(2**31), 2**31 - 1)),
}


def fill(draw: Any, message: Message, depth: int = 0) -> Message:
    """Set some of a message's fields at random."""
    for field in message.DESCRIPTOR.fields:
        if draw(st.integers(0, 2)) == 0 or depth > 6:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            target = getattr(message, field.name)
            value = field.message_type.fields_by_name["value"]
            for key in draw(st.lists(TEXTS, max_size=2)):
                if value.message_type is not None:
                    fill(draw, target[key], depth + 1)
                else:
                    target[key] = draw(SCALARS[value.cpp_type])
        elif field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                if field.message_type is not None:
                    fill(draw, getattr(message, field.name).add(), depth + 1)
                else:
                    getattr(message, field.name).append(draw(SCALARS[field.cpp_type]))
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            fill(draw, getattr(message, field.name), depth + 1)
        else:
            setattr(message, field.name, draw(SCALARS[field.cpp_type]))
    return message


@st.composite
def calls(draw: Any) -> tuple[str, Message]:
    method = draw(st.sampled_from(sorted(METHODS)))
    return method, fill(draw, GetMessageClass(METHODS[method])())


@pytest.fixture
def populated(server: Server) -> Iterator[Server]:
    server("CreateApp", pb.CreateAppRequest(app=pb.App(entrypoint="a:b"), app_id="shop"))
    told = fleet.Node(address="10.0.0.1:1", http_address="10.0.0.1:2", incarnation="i")
    server("RegisterNode", fleet.RegisterNodeRequest(parent="environments/default", node_id="n1", node=told))
    server("ListOperations", lro.ListOperationsRequest())
    return server


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(call=calls())
def test_every_request_is_answered_or_refused_with_a_reason(
    populated: Server, call: tuple[str, Message]
) -> None:
    method, request = call
    try:
        populated(method, request)
    except Refusal as refusal:
        told = refusal
    else:
        return
    assert told.code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    assert told.info.reason
    assert told.message
    if told.info.reason == "INVALID_FIELD":
        assert told.fields
