"""An app that answers when it is asked to, and tells which instance of it does."""

import asyncio


def create_app(context):
    """Answers at once, or `/{seconds}` later; `/begun` tells how many of those have begun."""
    begun = 0

    async def app(scope, receive, send):
        nonlocal begun
        assert scope["type"] == "http"
        path = scope["path"].strip("/")
        if path and path != "begun":
            begun += 1
            await asyncio.sleep(float(path))
        body = str(begun) if path == "begun" else f"answered by {context.instance}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body.encode()})

    return app
