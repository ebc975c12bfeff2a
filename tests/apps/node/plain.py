"""A plain app object, as an unmodified app has it."""


async def app(scope, receive, send):
    """Answer every request."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"plain"})
