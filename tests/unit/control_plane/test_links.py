"""What the links to the nodes show together, without asking each of them."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, RuntimeStatus, WatchInstancesResponse
from services.control_plane.leases import Leases
from services.control_plane.nodes.beginnings import AT_ONCE
from services.control_plane.nodes.link import (
    LONGEST_PASSING_SECONDS,
    PASSING_SECONDS,
    PASSING_TOGETHER,
    NodeLink,
)
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.nodes.silence import STALL
from services.control_plane.tenure import Tenure
from tests.eventually import eventually
from tests.virtual_time import VirtualTimeLoop, run_in_virtual_time

Message = WatchInstancesResponse


class Line:
    """A node's client whose stream says what a test puts into it."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[WatchInstancesResponse] = asyncio.Queue()
        self.silence = 0.0

    async def status(self) -> RuntimeStatus:
        return RuntimeStatus()

    async def watch(self, *, silence: float, term: int = 0) -> AsyncIterator[WatchInstancesResponse]:
        self.silence = silence
        while True:
            yield await self.said.get()

    async def close(self) -> None:
        pass

    def say(
        self,
        kind: Message.Type.ValueType,
        app: str = "",
        state: Instance.State.ValueType = Instance.STATE_UNSPECIFIED,
    ) -> None:
        instance = Instance(name=f"{app}/instances/1-1", state=state) if app else None
        self.said.put_nowait(Message(type=kind, instance=instance))


class Listener:
    """Whoever has the links: of what they tell only which apps have changed is looked at here."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def changed(self, apps: Iterable[str]) -> None:
        self.told += apps

    def __getattr__(self, name: str) -> Any:
        return lambda *told: None


async def test_the_nodes_of_an_app_are_known_without_a_look_at_every_node() -> None:
    lines = {f"127.0.0.{number}:1": Line() for number in range(1, 4)}
    links = NodeLinks(5.0, lambda address: lines[address], Leases(Tenure.endless(), lambda: 0.0))  # type: ignore[arg-type, return-value]

    def hosting(app: str) -> list[str]:
        return [link.node.name for link in links.hosting(app)]

    try:
        for number, address in enumerate(lines, 1):
            links.follow(Node(name=f"node-{number}", address=address), Listener())
        one, two, _ = lines.values()
        for line in lines.values():
            line.say(Message.SYNCED)
        await eventually(lambda: all(link.synced for link in links.all()))
        assert hosting("apps/a") == []

        for line in (two, one):
            line.say(Message.UPSERT, "apps/a")
        await eventually(lambda: hosting("apps/a"), lambda names: names == ["node-1", "node-2"])
        one.say(Message.REMOVE, "apps/a")
        await eventually(lambda: hosting("apps/a"), lambda names: names == ["node-2"])

        first = links.get("node-1")
        assert first is not None
        first.refuse("apps/b", Instance(name="apps/b/instances/1-1"))
        assert hosting("apps/b") == ["node-1"]
        first.forget("apps/b", "apps/b/instances/1-1")
        assert hosting("apps/b") == []

        two.say(Message.UPSERT, "apps/c")
        await eventually(lambda: hosting("apps/c"), lambda names: names == ["node-2"])
        links.forget("node-2")
        assert hosting("apps/a") == hosting("apps/c") == []
    finally:
        await links.close()


@pytest.mark.parametrize(
    ("timeout", "alone", "crowded"), [(5.0, 2.5, 5.0), (2.0, 1.0, 2.0), (12.0, 6.0, 6.0)]
)
def test_of_many_nodes_each_speaks_as_often_as_its_lease_is_renewed(
    timeout: float, alone: float, crowded: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> list[float]:
        lines = {f"127.0.0.{number}:1": Line() for number in range(1, 5)}
        links = NodeLinks(timeout, lambda it: lines[it], Leases(Tenure.endless(), lambda: 0.0))  # type: ignore[arg-type, return-value]
        for number, address in enumerate(lines, 1):
            links.follow(Node(name=f"node-{number}", address=address), Listener())
        await asyncio.sleep(0.1)
        await links.close()
        return [line.silence for line in lines.values()]

    monkeypatch.setattr("services.control_plane.nodes.links.CROWD", 2)
    assert run_in_virtual_time(main()) == [alone, alone, crowded, crowded]


class Busy(Line):
    """The line to a node that takes its time to tell what it has, or tells nothing."""

    under_way = most = 0

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def watch(self, *, silence: float, term: int = 0) -> AsyncIterator[WatchInstancesResponse]:
        Busy.under_way += 1
        Busy.most = max(Busy.most, Busy.under_way)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            Busy.under_way -= 1
        self.say(Message.SYNCED)
        async for message in super().watch(silence=silence, term=term):
            yield message


def test_of_many_nodes_each_has_its_time_from_its_turn_on() -> None:
    async def main() -> None:
        Busy.under_way = Busy.most = 0
        dead = [f"dead-{number}" for number in range(AT_ONCE)]
        living = [f"node-{number}" for number in range(10 * AT_ONCE)]
        lines = {it: Busy(900.0) for it in dead} | {it: Busy(0.9) for it in living}
        links = NodeLinks(5.0, lambda it: lines[it], Leases(Tenure.endless(), lambda: 0.0))  # type: ignore[arg-type, return-value]
        lost = Losses()
        for name in lines:
            links.follow(Node(name=name, address=name), lost)
        waits = links.get(living[-1])
        await asyncio.sleep(6.0)
        assert waits is not None
        assert not waits.synced
        assert not waits.is_missing, "nobody has asked it yet"
        await asyncio.sleep(8.0)
        assert all(links.is_heard(name) for name in living)
        assert sorted(lost.names) == sorted(dead)
        assert Busy.most <= 2 * AT_ONCE, "so many at once, beside those that have had their turn"
        await links.close()

    run_in_virtual_time(main())


class Losses(Listener):
    """Whoever is told which nodes are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def lost(self, link: NodeLink, why: str) -> None:
        self.names.append(link.name)


def test_a_control_plane_that_stood_still_gives_no_node_up_before_it_has_read_what_came() -> None:
    async def main() -> None:
        line, lost = Line(), Losses()
        links = NodeLinks(5.0, lambda _: line, Leases(Tenure.endless(), lambda: 0.0))  # type: ignore[arg-type, return-value]
        links.follow(Node(name="node-1", address="here"), lost)
        await asyncio.sleep(1.0)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.stand_still(20.0)
        await asyncio.sleep(STALL / 2)
        assert lost.names == []
        line.say(Message.SYNCED)
        await asyncio.sleep(10.0)
        assert lost.names == []
        await links.close()

    run_in_virtual_time(main())


def test_a_state_that_passes_is_news_only_where_it_lasts() -> None:
    async def main() -> list[str]:
        line, listener = Line(), Listener()
        links = NodeLinks(5.0, lambda address: line, Leases(Tenure.endless(), lambda: 0.0))  # type: ignore[arg-type, return-value]
        links.follow(Node(name="node-1", address="127.0.0.1:1"), listener)
        line.say(Message.SYNCED)
        line.say(Message.UPSERT, "apps/quick", Instance.STARTING)
        line.say(Message.UPSERT, "apps/quick", Instance.RUNNING)
        line.say(Message.UPSERT, "apps/gone", Instance.STOPPING)
        line.say(Message.REMOVE, "apps/gone")
        line.say(Message.UPSERT, "apps/slow", Instance.STARTING)
        await asyncio.sleep(PASSING_SECONDS / 2)
        before = sorted(listener.told)
        await asyncio.sleep(PASSING_SECONDS)
        await links.close()
        assert before == ["apps/gone", "apps/quick"]
        return listener.told

    assert sorted(run_in_virtual_time(main())) == ["apps/gone", "apps/quick", "apps/slow"]


def test_of_many_that_start_at_once_each_has_longer_until_it_is_news() -> None:
    async def main() -> list[str]:
        line, listener = Line(), Listener()
        links = NodeLinks(5.0, lambda address: line, Leases(Tenure.endless(), lambda: 0.0))  # type: ignore[arg-type, return-value]
        links.follow(Node(name="node-1", address="127.0.0.1:1"), listener)
        line.say(Message.SYNCED)
        many = [f"apps/a{number}" for number in range(10 * PASSING_TOGETHER)]
        for app in many:
            line.say(Message.UPSERT, app, Instance.STARTING)
        await asyncio.sleep(2 * PASSING_SECONDS)
        early = len(listener.told)
        for app in many[1:]:
            line.say(Message.UPSERT, app, Instance.RUNNING)
        await asyncio.sleep(LONGEST_PASSING_SECONDS)
        line.say(Message.UPSERT, "apps/next", Instance.STARTING)
        await asyncio.sleep(1.5 * PASSING_SECONDS)
        await links.close()
        assert early < 4 * PASSING_TOGETHER, "those before the others came"
        assert len(listener.told) == early + len(many[1:]) + 1
        return listener.told

    assert run_in_virtual_time(main())[-1] == "apps/next"
