"""An app that leaves behind what an interpreter waits for at its end: a thread, an executor, an exit hook."""

import atexit
import threading
from concurrent.futures import ThreadPoolExecutor

NEVER = threading.Event()


def create_app(context):
    pool = ThreadPoolExecutor(2)
    pool.submit(NEVER.wait)
    threading.Thread(target=NEVER.wait, daemon=False).start()
    atexit.register(NEVER.wait)

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})

    return app
