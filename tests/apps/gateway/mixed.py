"""An app that says which it is in every way that HTTP has: an answer, a stream of events, a WebSocket."""

import asyncio
import contextlib
import json


def create_app(context):
    """`/events/{count}` streams so many, `/slow/{seconds}` answers later, `/ill/{instance}` fails where it is
    that one, all else tells what arrived; all of it fails if the app is configured as `broken`."""

    async def http(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        path = scope["path"].removeprefix(scope["root_path"])
        if path.startswith("/events/"):
            head = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            for number in range(int(path.rpartition("/")[2])):
                event = f"data: {context.app} {number}\n\n".encode()
                await send({"type": "http.response.body", "body": event, "more_body": True})
                await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": b""})
            return
        if path.startswith("/slow/"):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(receive(), float(path.rpartition("/")[2]))
                return  # the client is gone
        told = {
            "app": context.app,
            "instance": context.instance,
            "method": scope["method"],
            "path": path,
            "root_path": scope["root_path"],
            "client": scope["client"][0],
            "scheme": scope["scheme"],
            "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
            "length": len(body),
        }
        ill = context.config.get("broken") or path == f"/ill/{context.instance}"
        status = 500 if ill else 200
        answer = json.dumps(told).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": answer})

    async def websocket(receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            text = f"{context.app} {message.get('text') or ''}"
            await send({"type": "websocket.send", "text": text})

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await http(scope, receive, send)
        elif scope["type"] == "websocket":
            await websocket(receive, send)

    return app
