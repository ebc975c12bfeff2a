"""Apps that requests of HTTP/2 are sent to."""

from __future__ import annotations

import asyncio


async def replies(scope, receive, send):
    """Answer each piece of the body as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        event = await receive()
        more = event.get("more_body", False)
        await send(
            {"type": "http.response.body", "body": b"<%s>" % event.get("body", b""), "more_body": more}
        )


class Waits:
    """Says when it is asked, and when its client is gone."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.heard: list[str] = []

    async def __call__(self, scope, receive, send):
        self.asked.set()
        while True:
            event = await receive()
            self.heard.append(event["type"])
            if event["type"] == "http.disconnect":
                return


def sends(size: int):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})

    return app
