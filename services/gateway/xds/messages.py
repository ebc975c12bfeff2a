"""Envoy's own messages, made from the descriptors that `protos/xds.py` has written. Nothing types them."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

# Their files import these, and look for them in the same pool.
from google.protobuf import duration_pb2 as _duration  # noqa: F401
from google.protobuf import empty_pb2 as _empty  # noqa: F401
from google.protobuf import struct_pb2 as _struct  # noqa: F401
from google.protobuf import timestamp_pb2 as _timestamp  # noqa: F401
from google.protobuf import wrappers_pb2 as _wrappers  # noqa: F401
from google.rpc import status_pb2 as _status  # noqa: F401

TYPE_PREFIX = "type.googleapis.com/"


@cache
def _pool() -> Any:
    """Return the default pool with Envoy's files in it: reflection tells them from there."""
    pool: Any = descriptor_pool.Default()
    raw = resources.files("appsupervisor").joinpath("xds.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@cache
def message(name: str) -> Any:
    """Return the class of a message by its full name. Raises KeyError for one that is not among them."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


def packed(content: Any) -> any_pb2.Any:
    """Return a message in an Any, as deterministic bytes: what is told the same is the same."""
    return any_pb2.Any(
        type_url=TYPE_PREFIX + content.DESCRIPTOR.full_name,
        value=content.SerializeToString(deterministic=True),
    )
