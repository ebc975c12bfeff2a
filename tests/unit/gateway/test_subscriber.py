"""A watch is taken up where it broke off, at the next replica, and begun anew where it cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import App, WatchAppsResponse
from services.gateway.subscriber import LONGEST_PAUSE, Watch
from services.rpc.errors import SupervisorError
from services.rpc.status import DETAILS_KEY, to_status

UPSERT, REMOVE, SYNCED = WatchAppsResponse.UPSERT, WatchAppsResponse.REMOVE, WatchAppsResponse.SYNCED
END = object()


def told(kind: Any, name: str = "", token: str = "") -> WatchAppsResponse:
    return WatchAppsResponse(type=kind, app=App(name=name) if name else None, resume_token=token)


class Broken(grpc.RpcError):
    """A status as a stream ends with it."""

    def __init__(self, reason: str = "") -> None:
        self._reason = reason

    def trailing_metadata(self) -> Any:
        if not self._reason:
            return ()
        error = SupervisorError(self._reason, "broken")
        return ((DETAILS_KEY, to_status(error).SerializeToString()),)


class ControlPlanes:
    """Plays one stream after the other, and keeps who was asked for what."""

    def __init__(self, *streams: list[Any]) -> None:
        self._streams = list(streams)
        self.asked: list[tuple[int, str]] = []
        self.known: set[str] = set()
        self.synced = 0
        self.pauses: list[float] = []
        self.watch = Watch(
            "WatchApps", self.call, put=self.put, remove=self.known.discard,
            known=lambda: self.known, synced=self._sync,
        )  # fmt: skip

    def put(self, app: App) -> None:
        if app.name == "apps/bad":
            raise ValueError("what nobody has thought of")
        self.known.add(app.name)

    def _sync(self) -> None:
        self.synced += 1

    async def call(self, turn: int, token: str) -> AsyncIterator[Any]:
        self.asked.append((turn, token))
        if not self._streams:
            raise asyncio.CancelledError
        for message in self._streams.pop(0):
            if isinstance(message, Exception):
                raise message
            yield message

    async def play(self, replicas: int = 1) -> None:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        with pytest.raises(asyncio.CancelledError):
            await self.watch.run(replicas, sleep)


async def test_a_broken_watch_goes_on_after_what_it_told_last() -> None:
    fake = ControlPlanes(
        [told(UPSERT, "apps/a"), told(SYNCED, token="t1"), told(UPSERT, "apps/b", "t2"), Broken()],
        [told(REMOVE, "apps/a", "t3"), told(SYNCED, token="t3")],
    )
    await fake.play()
    assert fake.asked == [(0, ""), (0, "t2"), (0, "t3")]
    assert (fake.known, fake.synced) == ({"apps/b"}, 2)


async def test_a_snapshot_that_broke_off_is_begun_again_and_nothing_is_forgotten_for_it() -> None:
    fake = ControlPlanes(
        [
            told(UPSERT, "apps/a"),
            told(UPSERT, "apps/b"),
            told(SYNCED, token="t1"),
            Broken("RESUME_TOKEN_EXPIRED"),
        ],
        [told(UPSERT, "apps/b", ""), Broken()],
        [told(UPSERT, "apps/b"), told(UPSERT, "apps/c")],
    )
    await fake.play()
    assert [token for _, token in fake.asked] == ["", "", "", ""]
    assert fake.known == {"apps/a", "apps/b", "apps/c"}


@pytest.mark.parametrize("reason", ["RESUME_TOKEN_EXPIRED", "INVALID_RESUME_TOKEN"])
async def test_a_watch_that_is_begun_anew_forgets_what_is_gone(reason: str) -> None:
    fake = ControlPlanes(
        [told(UPSERT, "apps/a"), told(UPSERT, "apps/b"), told(SYNCED, token="t1"), Broken(reason)],
        [told(UPSERT, "apps/b"), told(SYNCED, token="t2")],
    )
    await fake.play()
    assert [token for _, token in fake.asked] == ["", "", "t2"]
    assert fake.known == {"apps/b"}


async def test_the_next_replica_is_asked_and_pauses_grow_to_a_bound() -> None:
    fake = ControlPlanes(*[[Broken()] for _ in range(12)])
    await fake.play(replicas=3)
    assert [turn for turn, _ in fake.asked[:5]] == [0, 1, 2, 0, 1]
    assert fake.pauses[0] <= 0.1 < max(fake.pauses) <= LONGEST_PAUSE
    assert all(pause >= LONGEST_PAUSE / 2 for pause in fake.pauses[-4:])


async def test_a_watch_that_told_something_is_tried_again_at_once() -> None:
    fake = ControlPlanes(*[[told(SYNCED, token=f"t{number}"), Broken()] for number in range(8)])
    await fake.play()
    assert all(pause <= 0.1 for pause in fake.pauses)


async def test_what_cannot_be_routed_keeps_nothing_else_from_being_routed() -> None:
    fake = ControlPlanes(
        [told(UPSERT, "apps/a"), told(UPSERT, "apps/bad"), told(SYNCED, token="t1"), told(REMOVE, "apps/a")],
        [told(UPSERT, "apps/bad", "t2"), told(UPSERT, "apps/b", "t3")],
    )
    await fake.play()
    assert fake.known == {"apps/b"}
    assert fake.asked[-1] == (0, "t3")
