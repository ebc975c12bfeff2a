"""Carries out the requests of a batch, each as the call of its own would be: no outcome is another's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceResult
from services.rpc.pipeline.call import Call
from services.rpc.pipeline.errors import status_of

TURN = 16
"""Requests in one turn of the loop: a batch must not keep a lease or another call waiting for long."""

R = TypeVar("R")
One = Callable[[R], Awaitable[Instance | None]]


async def one_by_one(requests: Iterable[R], one: One[R], call: Call) -> list[InstanceResult]:
    """Return what came of each request, in their order, carried out in it."""
    results = []
    for number, request in enumerate(requests, 1):
        results.append(await _result(request, one, call))
        if not number % TURN:
            await asyncio.sleep(0)
    return results


async def at_once(requests: Iterable[R], one: One[R], call: Call) -> list[InstanceResult]:
    """Return what came of each request, in their order, carried out together: each may wait for the disk."""
    return await asyncio.gather(*(_result(request, one, call) for request in requests))


async def _result(request: R, one: One[R], call: Call) -> InstanceResult:
    try:
        return InstanceResult(instance=await one(request))
    except Exception as fault:  # noqa: BLE001  # told as the pipeline tells it of a call
        return InstanceResult(status=status_of(call, fault))
