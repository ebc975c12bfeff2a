"""Envoy's own messages, made from the descriptors that `protos/xds.py` has written. Nothing types them."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import any_pb2 as _any  # noqa: F401
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Their files import these, and look for them in the same pool.
from google.protobuf import duration_pb2 as _duration  # noqa: F401
from google.protobuf import empty_pb2 as _empty  # noqa: F401
from google.protobuf import struct_pb2 as _struct  # noqa: F401
from google.protobuf import timestamp_pb2 as _timestamp  # noqa: F401
from google.protobuf import wrappers_pb2 as _wrappers  # noqa: F401
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
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


def parsed(name: str, content: dict[str, Any]) -> Any:
    """Return a message by its full name and its JSON form."""
    target = message(name)()
    return make_canonical(ParseDict(content, target, descriptor_pool=descriptor_pool.Default()))


def typed(name: str, **content: Any) -> dict[str, Any]:
    """Return the JSON form of a message in an Any."""
    return {"@type": TYPE_PREFIX + name, **content}


def make_canonical(content: Any) -> Any:
    """Write each message packed in another one anew, maps in order, and return the whole.

    What packs them leaves the order of maps to chance: the same would have other bytes in each process, and
    an Envoy would take a listener for changed, and drain its connections.
    """
    for field, value in content.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = value.values() if field.message_type.fields_by_name["value"].message_type else ()
        elif isinstance(value, Message):
            values = (value,)
        else:
            values = value
        for one in values:
            if one.DESCRIPTOR.full_name == "google.protobuf.Any":
                _repack(one)
            else:
                make_canonical(one)
    return content


def _repack(holder: Any) -> None:
    inner = message(holder.type_url.removeprefix(TYPE_PREFIX)).FromString(holder.value)
    holder.value = make_canonical(inner).SerializeToString(deterministic=True)
