"""An ASGI app object that takes what it is asked to take: memory, time, its own life."""

import asyncio
import os
from urllib.parse import parse_qs

kept = []


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    asked = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
    if "mib" in asked:
        kept.append(b"x" * (int(asked["mib"]) << 20))
    if "exit" in asked:
        os._exit(int(asked["exit"]))
    await asyncio.sleep(float(asked.get("seconds", 0)))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
