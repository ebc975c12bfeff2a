"""An app on edition one of its vendored package."""

import tinytext


async def app(scope, receive, send):
    from tinytext import core

    text = f"{tinytext.shout('hi')} {tinytext.__version__} {core.EDITION}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text.encode()})
