"""An app whose requests end as no request should, and whose process may end with them."""

import asyncio
import multiprocessing
import os
import signal
import time


def create_app(context):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        path = scope["path"].removeprefix(scope["root_path"])
        if path == "/cancel-itself":
            asyncio.current_task().cancel()
            await asyncio.sleep(1)
        body = b"%d" % os.getpid()
        if path == "/string-body":
            body = "text"
        elif path == "/terminate-itself":
            os.kill(os.getpid(), signal.SIGTERM)
        elif path == "/fork-and-terminate":
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            child.start()
            await asyncio.sleep(0.05)
            child.terminate()
            await asyncio.to_thread(child.join, 5)
            body = str(child.exitcode).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app
