"""The nodes as the control plane has them: which have joined, and which of earlier runs are not started."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from compose.local.settings import NODE_ID

if TYPE_CHECKING:
    # Of the stubs alone: at run time both kinds are FleetStub.
    from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetAsyncStub

CALL_TIMEOUT = 10.0
LARGEST_PAGE = 1000
LOOK_AGAIN = 0.1


async def known_nodes(stub: FleetAsyncStub) -> list[fleet.Node]:
    """Return all nodes of the environment that the launcher's nodes belong to."""
    known: list[fleet.Node] = []
    request = fleet.ListNodesRequest(parent="environments/default", page_size=LARGEST_PAGE)
    while True:
        page = await stub.ListNodes(request, timeout=CALL_TIMEOUT)
        known += page.nodes
        if not page.next_page_token:
            return known
        request.page_token = page.next_page_token


async def not_joined(stub: FleetAsyncStub, names: Collection[str], timeout: float) -> list[str]:
    """Wait until all the nodes of those names are ready; return those that are not in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        ready = {node.name for node in await known_nodes(stub) if node.state == fleet.Node.READY}
        missing = [name for name in names if name not in ready]
        if not missing or loop.time() > deadline:
            return missing
        await asyncio.sleep(LOOK_AGAIN)


def about_absent(known: Sequence[fleet.Node], started: int, data_dir: Path) -> list[str]:
    """Return a sentence for each node beyond the first `started` ones that has left a folder and has apps."""
    told: list[tuple[int, str]] = []
    for node in known:
        node_id = node.name.rpartition("/")[2]
        number = _number(node_id)
        # Another machine's node may have such a name; one of ours has left a folder.
        if number <= started or not node.app_count or not (data_dir / node_id).is_dir():
            continue
        apps = "1 app is" if node.app_count == 1 else f"{node.app_count} apps are"
        sentence = (
            f"{node_id} is not started, and {apps} placed on it. Until it is started "
            f"(make up NODES={number}), what has its data in {data_dir / node_id} does not answer; "
            f"appsupervisor nodes delete {node_id} places the rest elsewhere"
        )
        told.append((number, sentence))
    return [text for _, text in sorted(told)]


def _number(node_id: str) -> int:
    text = node_id.removeprefix(NODE_ID.format(""))
    return int(text) if text.isascii() and text.isdigit() and NODE_ID.format(text) == node_id else 0
