"""Apps that care which event loop runs them, and when."""

import asyncio
import time

from chaos import answer


async def which(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    loop = asyncio.get_running_loop()
    if scope["path"] == "/nested":
        # What nest_asyncio does, and only asyncio's own loop can be made to do: run while it runs.
        later = loop.create_task(asyncio.sleep(0.01, "nested"))
        current = asyncio.current_task()
        asyncio.tasks._leave_task(loop, current)
        while not later.done():
            loop._run_once()
        asyncio.tasks._enter_task(loop, current)
        await answer(send, later.result().encode())
    elif scope["path"] == "/sleep":
        time.sleep(20)  # noqa: ASYNC251  (blocking its loop is what it is for)
    else:
        await answer(send, type(loop).__module__.encode())
