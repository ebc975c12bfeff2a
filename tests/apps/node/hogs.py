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


def _until_told(context):
    """Say by the file `here` in the data directory that the thread is held, until the file `go` is there."""
    (context.data_dir / "here").touch()
    while not (context.data_dir / "go").exists():
        time.sleep(0.005)


def holds_its_loop(context):
    """Blocks its event loop with each request, until it is told to go on."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        _until_told(context)
        await _answer(send)

    return app


def worker(context):
    """Answers from a worker thread; `/held` only when it is told to."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await to_thread.run_sync(_until_told if scope["path"] == "/held" else id, context)
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
