"""Clients of nodes for calls that come and go, by address: at any replica, whoever follows the node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from services.control_plane.nodes.client import NodeClient
from services.control_plane.store.mirror import Mirror
from services.rpc.errors import SupervisorError


class NodePool:
    """Shares one client among the calls to an address, for as long as there are any. Lives on one loop."""

    def __init__(self, mirror: Mirror, connect: Callable[[str], NodeClient] = NodeClient) -> None:
        self._nodes = mirror.nodes
        self._connect = connect
        self._clients: dict[str, tuple[NodeClient, int]] = {}

    @asynccontextmanager
    async def client_of(self, node: str) -> AsyncIterator[NodeClient]:
        """Lend the client of a node, where the catalog says it is. Raises NODE_UNREACHABLE if it isn't."""
        record = self._nodes.get(node)
        if record is None:
            raise SupervisorError("NODE_UNREACHABLE", f"{node} is not registered now.", resource=node)
        address = record.node.address
        client, users = self._clients.get(address) or (self._connect(address), 0)
        self._clients[address] = client, users + 1
        try:
            yield client
        finally:
            client, users = self._clients.pop(address)
            if users > 1:
                self._clients[address] = client, users - 1
            else:
                await client.close()
