"""Apps that talk: they print, log and warn as their requests say."""

import ctypes
import json
import logging
import sys
import threading
from urllib.parse import parse_qs

print("imported")


def create_app(context):
    print(f"made {context.instance}")
    library = logging.getLogger(f"library.{context.app}")

    def say(path, query):
        text = query.get("text", ["hello"])[0]
        if path == "/print":
            print(text)
        elif path == "/stderr":
            print(text, file=sys.stderr)
        elif path == "/log":
            context.logger.debug("debug %s", text)
            context.logger.info("info %s", text)
            library.warning("library %s", text)
            try:
                raise ValueError(text)
            except ValueError:
                library.exception("failed")
        elif path == "/thread":
            thread = threading.Thread(target=print, args=(text,))
            thread.start()
            thread.join()
        elif path == "/partial":
            print(text, end="", flush=True)
        elif path == "/bytes":
            sys.stdout.buffer.write(text.encode() + b"\n")
            sys.stdout.buffer.flush()
        elif path == "/many":
            for number in range(int(query["count"][0])):
                print(text, number)
        elif path == "/secrets":
            value = context.secrets["TOKEN"]
            print("plain", value)
            print(json.dumps({"token": value}), repr(value))
            context.logger.error("logged %s", value)
            print("x" * (16 * 1024 - 5) + value + "y" * 40_000 + value)
        elif path == "/raise":
            raise RuntimeError(text)
        elif path == "/segfault":
            ctypes.string_at(0)

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            print("starting")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            print("stopping")
            await send({"type": "lifespan.shutdown.complete"})
            return
        say(scope["path"], parse_qs(scope["query_string"].decode()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"said"})

    return app
