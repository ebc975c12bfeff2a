"""Data directories of a fake node: told, and handed over to another app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node import rules
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from tests.fakes.runtime_node import FakeNode


def list_directories(
    node: FakeNode, request: pb.ListDataDirectoriesRequest
) -> pb.ListDataDirectoriesResponse:
    """ListDataDirectories; a page token is the last name of the page before."""
    app = rules.check_parent(request.parent)
    rules.check_page_size(request.page_size)
    if request.page_token and not request.page_token.startswith("apps/"):
        raise SupervisorError("INVALID_PAGE_TOKEN", "It is none of this node's.")
    found = sorted(
        (f"apps/{node.disk.apps[uid]}/dataDirectories/{uid}", uid)
        for uid in node.disk.data
        if app in (None, node.disk.apps[uid])
    )
    found = [(name, uid) for name, uid in found if name > request.page_token]
    size = min(request.page_size or 50, 1000)
    page = [directory(node, uid) for _, uid in found[:size]]
    more = page[-1].name if len(found) > size else ""
    return pb.ListDataDirectoriesResponse(data_directories=page, next_page_token=more)


def claim(node: FakeNode, request: pb.ClaimDataDirectoryRequest) -> pb.DataDirectory:
    """ClaimDataDirectory."""
    app, uid, to_app, to_uid = rules.check_claim(request)
    node.lease.heed(request.term)
    if any(hosted.spec.app_uid == uid for hosted in node.hosted.values()):
        raise SupervisorError("INSTANCE_EXISTS", "An instance has the data.", resource=f"apps/{app}")
    if to_uid in node.disk.data:
        if uid in node.disk.data:
            raise SupervisorError("DATABASE_UNAVAILABLE", "There is data of its own already.")
        return directory(node, to_uid)
    if uid not in node.disk.data or node.disk.apps[uid] != app:
        raise SupervisorError("DATA_MISSING", "Its data is not here.")
    node.disk.data.discard(uid)
    node.disk.data.add(to_uid)
    node.disk.apps[to_uid] = to_app
    node.logs.entries.pop(uid, None)
    return directory(node, to_uid)


def directory(node: FakeNode, uid: str) -> pb.DataDirectory:
    """Return what a node tells of an app's data."""
    hosted = any(one.spec.app_uid == uid for one in node.hosted.values())
    name = f"apps/{node.disk.apps[uid]}/dataDirectories/{uid}"
    size = 0 if hosted else 4096
    return pb.DataDirectory(name=name, app_uid=uid, size_bytes=size, has_database=True, hosted=hosted)
