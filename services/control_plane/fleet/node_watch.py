"""WatchNodes: the nodes of an environment, or of all, as they change. Answered from the mirror."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from appsupervisor.fleet.v1 import fleet_pb2 as pb
from services.control_plane.catalog.pages import request_digest
from services.control_plane.catalog.watching import watched
from services.control_plane.fleet.views import environment_not_found, shown_node
from services.control_plane.rules.names import environment_name, parse_environment_name
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import NodeRecord
from services.rpc.feed import Entry, Mark, Signal

Message = pb.WatchNodesResponse


async def watch_nodes(store: CatalogStore, request: pb.WatchNodesRequest) -> AsyncGenerator[Message, None]:
    """Carry out WatchNodes."""
    mirror = store.mirror
    environment_id = parse_environment_name(request.parent, "parent", wildcard=True)
    prefix = "environments/"
    if environment_id != "-":
        if mirror.environments.get(environment_name(environment_id)) is None:
            raise environment_not_found(environment_name(environment_id))
        prefix = f"{environment_name(environment_id)}/nodes/"

    def told(entry: Entry[NodeRecord], resumed: bool) -> Message | None:
        if not entry.key.startswith(prefix):
            return None
        if entry.value is None:
            gone = pb.Node(name=entry.key)
            return Message(type=Message.REMOVE, node=gone, revision=entry.revision)
        shown = shown_node(mirror, entry.value, whole=False)
        return Message(type=Message.UPSERT, node=shown, revision=entry.revision)

    digest = request_digest("watch nodes", request.parent)
    async for message in watched(
        store, mirror.nodes, request.resume_token, digest, entry=told, mark=_mark, changed_together=True
    ):
        yield message


def _mark(mark: Mark) -> Message:
    kind = Message.BOOKMARK if mark.signal is Signal.IDLE else Message.SYNCED
    return Message(type=kind, revision=mark.revision)
