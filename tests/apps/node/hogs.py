"""Apps that use up what they share with others."""

import os
import time
from urllib.parse import parse_qs

from anyio import to_thread


async def _answer(send, body=b"ok"):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def _query(scope):
    return {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}


def sleeps(context):
    """Blocks its event loop for a second with each request."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        time.sleep(1)  # noqa: ASYNC251 - what is to be survived
        await _answer(send)

    return app


def worker(context):
    """Sleeps in a worker thread."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await to_thread.run_sync(time.sleep, float(_query(scope)["seconds"]))
        await _answer(send)

    return app


def exits(context):
    """Ends its process when it is asked to."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        status = _query(scope).get("exit")
        if status:
            os._exit(int(status))
        await _answer(send)

    return app
