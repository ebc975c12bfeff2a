"""Reads at a replica wait for what others have acknowledged, together, not for a database that is gone."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from services.control_plane.servicers.fresh import FreshReads, FreshServicer
from services.control_plane.store.errors import unavailable
from services.rpc.errors import SupervisorError
from tests.eventually import WITHIN


class Store:
    """A store whose looks end when they are told to."""

    def __init__(self) -> None:
        self.looks: list[Future[int]] = []

    def catch_up(self) -> Future[int]:
        self.looks.append(Future())
        return self.looks[-1]


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_reads_share_a_look_that_begins_after_they_came() -> None:
    store: Any = Store()
    reads = FreshReads(store, seconds=WITHIN)
    first = asyncio.create_task(reads.caught_up())
    await turns()
    others = [asyncio.create_task(reads.caught_up()) for _ in range(3)]
    await turns()
    assert len(store.looks) == 1
    store.looks[0].set_result(1)
    await first
    await turns()
    assert [other.done() for other in others] == [False] * 3  # that look may not have seen what they know of
    others[0].cancel()
    assert len(store.looks) == 2
    store.looks[1].set_result(2)
    await asyncio.gather(*others[1:])
    await turns()
    assert len(store.looks) == 2


async def test_what_is_being_taken_in_while_it_is_asked_for_is_found() -> None:
    store: Any = Store()
    found: list[str] = []

    class Operations:
        async def WaitOperation(self, request: str, call: Any) -> str:  # noqa: N802 - an RPC's name
            if request not in found:
                raise SupervisorError("OPERATION_NOT_FOUND", "It does not exist.", resource=request)
            return request

    servicer: Any = FreshServicer(Operations(), store, FreshReads(store))
    call = asyncio.create_task(servicer.WaitOperation("operations/x", None))
    await turns()
    found.append("operations/x")  # of a change whose apps had been taken in before the call came
    store.looks[-1].set_result(1)
    assert await call == "operations/x"
    call = asyncio.create_task(servicer.WaitOperation("operations/y", None))
    await turns()
    store.looks[-1].set_result(1)
    with pytest.raises(SupervisorError):
        await call


async def test_nobody_waits_for_a_database_that_does_not_answer_until_it_does_again() -> None:
    store: Any = Store()
    reads = FreshReads(store, seconds=0.01)
    await reads.caught_up()  # in vain: it never ends
    await reads.caught_up()
    await turns()
    store.looks[-1].set_exception(unavailable())
    await turns()
    await reads.caught_up()
    await turns()
    store.looks[-1].set_result(1)
    await turns()
    waits = asyncio.create_task(reads.caught_up())
    await turns()
    assert not waits.done()
    store.looks[-1].set_result(2)
    await waits
