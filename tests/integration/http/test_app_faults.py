"""What an app does to its own request, and what of it the next one notices: nothing."""

import asyncio
import contextlib

import pytest


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
