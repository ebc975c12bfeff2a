"""An app that speaks gRPC over HTTP/1.1: native calls by the edge's bridge, and gRPC-Web by itself."""

import asyncio
import struct


def frame(flags, message):
    return struct.pack(">BI", flags, len(message)) + message


def create_app(context):
    """`…/Say` tells what was said, `…/Count` each byte of it, `…/Refuse` a status, `…/Wait` nothing."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        kind = headers[b"content-type"]
        method = scope["path"].rpartition("/")[2]
        if method == "Wait":
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        said = body[5:]
        is_web = kind.startswith(b"application/grpc-web")
        status, told = (b"7", b"not you") if method == "Refuse" else (b"0", b"")
        head = [(b"content-type", kind)]
        if not is_web:
            head += [(b"grpc-status", status), (b"grpc-message", told)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        pieces = [said[at : at + 1] for at in range(len(said))] if method == "Count" else [said]
        for piece in pieces if status == b"0" else []:
            await send({"type": "http.response.body", "body": frame(0, piece), "more_body": True})
            if method == "Count":
                await asyncio.sleep(0.01)
        trailers = frame(0x80, b"grpc-status: %s\r\ngrpc-message: %s\r\n" % (status, told)) if is_web else b""
        await send({"type": "http.response.body", "body": trailers})

    return app
