"""The log of an app that runs on several nodes: all of it is one stream, and is gone on with as one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from tests.eventually import eventually
from tests.fakes.runtime_node import FakeNode
from tests.integration.control_plane.plane import NODE, Plane, reason_of

OTHER = "environments/default/nodes/fake-2"


async def two_replicas(plane: Plane) -> dict[str, FakeNode]:
    nodes = [await plane.node(NODE), await plane.node(OTHER)]
    app = pb.App(replicas=2, database=rt.Database(no_database=rt.Database.NoDatabase()))
    app.entrypoint = "shop:create_app"
    await plane.done(await plane.apps.CreateApp(pb.CreateAppRequest(app=app, app_id="shop")))
    await plane.app("apps/shop", lambda it: len(it.instances) == 2)
    return {node.node: node for node in nodes}


async def logged(plane: Plane, nodes: dict[str, FakeNode], *lines: tuple[str, str]) -> None:
    """Have the replicas log lines, given by node, each a little later than the one before."""
    app = await plane.get("apps/shop")
    names = {it.node: it.name for it in app.instances}
    for node, text in lines:
        nodes[node].logs.add(names[node], app.uid, text, rt.LogEntry.INFO)
        await asyncio.sleep(0)


async def read(plane: Plane, **fields: Any) -> tuple[list[str], set[str], str]:
    """Return the lines that there are, the instances that they are of, and the last token."""
    lines, instances, token = [], set(), ""
    async for message in plane.apps.TailAppLogs(pb.TailAppLogsRequest(name="apps/shop", **fields)):
        lines += [entry.text for entry in message.entries]
        instances |= {entry.instance for entry in message.entries}
        token = message.resume_token
    return lines, instances, token


async def test_the_logs_of_all_replicas_are_told_and_gone_on_with(plane: Plane) -> None:
    nodes = await two_replicas(plane)
    await logged(plane, nodes, (NODE, "1"), (OTHER, "2"))
    lines, instances, token = await read(plane)
    assert (lines, len(instances)) == (["1", "2"], 2), "by time, and each says of which instance"
    await logged(plane, nodes, (OTHER, "3"), (NODE, "4"))
    assert sorted((await read(plane, resume_token=token))[0]) == ["3", "4"]
    only = next(iter(instances))
    assert len((await read(plane, instance=only))[0]) == 2
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(plane, resume_token="r.bm9uc2Vuc2U=")
    assert reason_of(refused.value) == "INVALID_RESUME_TOKEN"


async def test_who_follows_hears_all_replicas_also_one_that_comes_later_and_while_one_is_silent(
    plane: Plane,
) -> None:
    nodes = await two_replicas(plane)
    third = await plane.node("environments/default/nodes/fake-3")
    nodes[third.node] = third
    heard: list[str] = []

    async def follow() -> None:
        request = pb.TailAppLogsRequest(name="apps/shop", follow=True)
        async with aclosing(aiter(plane.apps.TailAppLogs(request))) as messages:
            async for message in messages:
                heard.extend(entry.text for entry in message.entries)

    following = asyncio.create_task(follow())
    try:
        await logged(plane, nodes, (NODE, "1"), (OTHER, "2"))
        await eventually(lambda: sorted(heard) == ["1", "2"])
        await plane.done(await plane.update("apps/shop", ["replicas"], replicas=3))
        await plane.app("apps/shop", lambda it: len(it.instances) == 3)
        await logged(plane, nodes, (third.node, "3"))
        await eventually(lambda: "3" in heard)
        await nodes[OTHER].kill()
        await logged(plane, nodes, (NODE, "4"))
        await eventually(lambda: "4" in heard)
        assert not following.done()
    finally:
        following.cancel()
        await asyncio.wait({following})
