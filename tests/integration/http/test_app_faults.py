"""What an app does to its own request, and what of it the next one notices: nothing."""

import asyncio
import contextlib

import pytest

from runtime_node.http import RequestInterrupted
from runtime_node.http.connection import FrontConnection
from runtime_node.http.exchange import Exchange


async def cancels_itself(scope, receive, send):
    task = asyncio.current_task()
    assert task is not None
    task.cancel("by itself")
    await asyncio.sleep(0)


async def sends_text(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": "text"})


@pytest.mark.parametrize(("app", "said"), [(cancels_itself, "by itself"), (sends_text, "not str")])
async def test_what_an_app_does_to_its_own_request_is_its_fault(site, app, said):
    gate = site.app("a", app)
    answer = await site.get("/")
    assert (answer.status, answer.reason) == (500, "APP_RAISED")
    assert said in site.faults[0]
    assert (gate.figures().faults, gate.figures().errors) == (1, 1)
    # The next one is served as if nothing had been.
    gate.open(sends_nothing_wrong)
    assert (await site.get("/")).body == b"whole"


async def sends_nothing_wrong(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    # What was refused leaves nothing behind in the response.
    with contextlib.suppress(TypeError):
        await send({"type": "http.response.body", "body": "text"})
    await send({"type": "http.response.body", "body": memoryview(b"whole")})


async def raises(scope, receive, send):
    raise ValueError


async def blocks(scope, receive, send):
    raise RequestInterrupted


@pytest.mark.parametrize("app", [raises, blocks])
@pytest.mark.parametrize(("owner", "hit"), [(Exchange, "_fail"), (FrontConnection, "answer")])
async def test_an_interruption_that_comes_late_costs_no_answer(site, monkeypatch, app, owner, hit):
    real, late = getattr(owner, hit), [RequestInterrupted]

    def interrupted(*arguments):
        if late:
            raise late.pop()
        return real(*arguments)

    monkeypatch.setattr(owner, hit, interrupted)
    gate = site.app("a", app)
    answer = await site.get("/")
    assert (answer.status, answer.reason) == (504, "APP_BLOCKED_LOOP")
    assert (late, gate.figures().in_flight) == ([], 0)
    gate.open(sends_nothing_wrong)
    assert (await site.get("/")).body == b"whole"


class Odd:
    def __repr__(self):
        raise SystemExit(3)

    __str__ = __eq__ = __repr__
    __hash__ = None


async def spoils_its_scope(scope, receive, send):
    for key in scope:
        scope[key] = Odd()
    raise ValueError


async def clears_its_scope_and_answers(scope, receive, send):
    scope.clear()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"whole", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def test_what_an_app_makes_of_its_scope_is_looked_at_no_more(site):
    gate = site.app("a", spoils_its_scope)
    answer = await site.get("/")
    assert (answer.status, answer.reason) == (500, "APP_RAISED")
    assert "ValueError" in site.faults[0]
    gate.open(clears_its_scope_and_answers)
    assert (await site.get("/")).body == b"whole"
