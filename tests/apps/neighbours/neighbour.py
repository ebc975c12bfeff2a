"""The app beside the hogs: it answers 500 as soon as something that it shares has been changed."""

import asyncio
import json
import os
import signal

_FIGURES = {"figures": [1, 2, 3]}
_TEXT = '{"figures": [1, 2, 3]}'


def _what_is_shared():
    return {
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "terminate": signal.getsignal(signal.SIGTERM),
        "interrupt": signal.getsignal(signal.SIGINT),
    }


def create_app(context):
    """Compares what it shares with how it was at its first request."""
    before = {}

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        if not before:
            before.update(_what_is_shared())
        changed = [name for name, value in _what_is_shared().items() if value != before[name]]
        if json.dumps(_FIGURES) != _TEXT:
            changed.append("json")
        if asyncio.get_running_loop().is_closed():
            changed.append("loop")
        body = ",".join(changed).encode() or b"well"
        await send({"type": "http.response.start", "status": 500 if changed else 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app
