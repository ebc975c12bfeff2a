"""The gate against requests that do nothing by themselves."""

import asyncio
import sys
import time

import pytest

from runtime_node.http import Gate, GateLimits
from tests.eventually import WITHIN


class FakeGatedRequest:
    is_websocket = False

    def __init__(self, gate):
        self.gate = gate
        self.admitted_at = time.monotonic()
        self.task = None
        self.refused = None
        self.cut_with = None
        self.gentle = 0
        self.done = asyncio.Event()

    async def run(self, asgi):
        await self.done.wait()
        self.gate.response_done(self, time.monotonic())
        self.gate.task_done(self)

    def refuse(self, problem):
        self.refused = problem

    def cut(self, problem):
        self.cut_with = problem
        self.done.set()

    def close_gently(self):
        self.gentle += 1


async def app(scope, receive, send):
    pass


def enter(gate, count=1):
    gated_requests = [FakeGatedRequest(gate) for _ in range(count)]
    for gated in gated_requests:
        gate.admit(gated, asyncio.get_running_loop())
    return gated_requests


async def settled(condition):
    async with asyncio.timeout(WITHIN):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def turns():
    """Let the loop go round often enough for whatever has been begun."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_new_gate_is_closed():
    [gated] = enter(Gate("a"))
    assert gated.refused.reason == "INSTANCE_STOPPING"


async def test_a_dormant_gate_is_small():
    gate = Gate("apps/a/instances/1")
    seen = [gate, *(getattr(gate, name) for name in Gate.__slots__ if name not in ("limits", "name"))]
    assert sum(sys.getsizeof(part) for part in seen if not isinstance(part, int | float | None)) < 800


async def test_commands_from_another_thread_wake_what_waits():
    gate = Gate("a")
    wanted = []
    await asyncio.to_thread(gate.hold, lambda: wanted.append(1))
    gated_requests = enter(gate, 3)
    assert wanted == [1]
    await asyncio.to_thread(gate.open, app)
    await settled(lambda: all(gated.task for gated in gated_requests))
    assert gate.figures().in_flight == 3
    for gated in gated_requests:
        gated.done.set()
    await settled(lambda: gate.figures().in_flight == 0)


async def test_a_place_is_given_on_in_the_order_of_arrival():
    gate = Gate("a", GateLimits(max_concurrent_requests=1, max_queued_requests=2))
    gate.open(app)
    first, second, third, fourth = enter(gate, 4)
    assert fourth.refused.status == 503
    await settled(lambda: first.task)
    first.done.set()
    await settled(lambda: second.task)
    assert third.task is None
    second.done.set()
    await settled(lambda: third.task)
    third.done.set()
    await settled(lambda: gate.figures().in_flight == 0)


@pytest.mark.parametrize("queue", [0, 2])
async def test_a_starting_app_keeps_as_many_waiting_as_a_running_one_takes(queue):
    gate = Gate("a", GateLimits(max_concurrent_requests=3, max_queued_requests=queue))
    wanted = []
    gate.hold(lambda: wanted.append(1))
    *kept, beyond = enter(gate, 3 + queue + 1)
    assert wanted == [1]
    assert beyond.refused.reason == "SERVER_BUSY"
    gate.open(app)
    await settled(lambda: all(gated.task for gated in kept[:3]))
    for gated in kept:
        await settled(lambda one=gated: one.task)
        gated.done.set()
    await settled(lambda: gate.figures().in_flight == 0)


async def test_what_an_app_that_has_ended_did_not_get_waits_for_the_next_in_its_turn():
    gate = Gate("a", GateLimits(max_concurrent_requests=1))
    gate.open(app)
    first, second = enter(gate, 2)
    await settled(lambda: first.task)
    first.task.cancel()
    gate.put_back(first, app)
    assert (gate.figures().in_flight, gate.figures().queued, first.task) == (0, 2, None)

    async def other(scope, receive, send):
        pass

    gate.open(other)
    await settled(lambda: first.task)
    assert second.task is None
    for gated in (first, second):
        await settled(lambda one=gated: one.task)
        gated.done.set()
    await settled(lambda: gate.figures().in_flight == 0)
    assert gate.figures().requests == 2


async def test_closing_refuses_what_waits_and_leaves_what_is_served():
    gate = Gate("a", GateLimits(max_concurrent_requests=1))
    gate.open(app)
    served, queued = enter(gate, 2)
    gate.close("APP_STOPPED", 3)
    await settled(lambda: queued.refused)
    assert (queued.refused.reason, queued.refused.retry_after) == ("APP_STOPPED", 3)
    assert served.cut_with is None
    served.done.set()
    assert await gate.drain(WITHIN) == 0


async def test_drain_cuts_after_its_time_and_tells_how_many():
    gate = Gate("a")
    gate.open(app)
    gated_requests = enter(gate, 3)
    assert await gate.drain(0.01) == 3
    assert all(gated.cut_with.reason == "INSTANCE_STOPPING" for gated in gated_requests)


async def test_a_cancelled_drain_leaves_the_requests_alone():
    gate = Gate("a")
    gate.open(app)
    [gated] = enter(gate)
    draining = asyncio.ensure_future(gate.drain(5))
    await turns()
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    await turns()
    assert gated.cut_with is None
    gated.done.set()
    await settled(lambda: gate.figures().in_flight == 0)


async def test_an_on_fault_that_raises_is_contained(caplog):
    def broken(name, stack):
        raise RuntimeError("of the caller")

    gate = Gate("a", on_fault=broken)
    gate.fault(ValueError("of the app"), "what")
    assert gate.figures().faults == 1
    assert "on_fault failed" in caplog.text


async def test_a_stack_is_cut_to_its_end():
    stacks = []
    gate = Gate("a", on_fault=lambda name, stack: stacks.append(stack))
    gate.fault(ValueError("x" * 100_000), "what")
    assert len(stacks[0]) == 16 * 1024
