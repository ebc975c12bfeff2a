"""A gRPC service as an ASGI app: the bytes of HTTP/2's streams as they are, the status in trailers.

Messages are plain bytes here; with `serializer=Message.SerializeToString` a client speaks protobuf.
"""

import asyncio
import struct


class Call:
    """One call: reads messages as they come, sends others meanwhile, and ends with a status."""

    def __init__(self, scope, receive, send):
        self.path = scope["path"]
        self.metadata = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._buffer = bytearray()
        self._more = True
        self._started = False

    async def messages(self):
        """Yield each message of the client; raise ConnectionError when it has cancelled the call."""
        while True:
            while len(self._buffer) >= 5:
                compressed, length = struct.unpack_from(">BI", self._buffer)
                assert not compressed
                if len(self._buffer) < 5 + length:
                    break
                message = bytes(self._buffer[5 : 5 + length])
                del self._buffer[: 5 + length]
                yield message
            if not self._more:
                return
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise ConnectionError("the client has cancelled the call")
            self._buffer += event.get("body", b"")
            self._more = event.get("more_body", False)

    async def answer(self, message):
        """Send a message."""
        await self._start()
        frame = struct.pack(">BI", 0, len(message)) + message
        await self._send({"type": "http.response.body", "body": frame, "more_body": True})

    async def end(self, status=0, text=""):
        """End the call with a status."""
        await self._start()
        await self._send({"type": "http.response.body", "body": b""})
        trailers = [(b"grpc-status", b"%d" % status), (b"grpc-message", text.encode())]
        await self._send({"type": "http.response.trailers", "headers": trailers})

    async def _start(self):
        if not self._started:
            self._started = True
            headers = [(b"content-type", b"application/grpc")]
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": headers, "trailers": True}
            )


class Calculator:
    """`Echo` (unary), `Count` (a stream of answers), `Sum` (a stream of requests), `Chat` (both by turns)."""

    def __init__(self):
        self.cancelled = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                event = await receive()
                await send({"type": event["type"] + ".complete"})
                if event["type"] == "lifespan.shutdown":
                    return
        if "http.response.trailers" not in scope.get("extensions", {}):
            await send({"type": "http.response.start", "status": 426, "headers": []})
            await send({"type": "http.response.body", "body": b"gRPC needs HTTP/2.\n"})
            return
        call = Call(scope, receive, send)
        method = call.path.rpartition("/")[2]
        try:
            await getattr(self, method.lower(), self.unknown)(call)
        except ConnectionError:
            self.cancelled.append(method)

    async def echo(self, call):
        async for message in call.messages():
            await call.answer(message)
        await call.end()

    async def count(self, call):
        async for message in call.messages():
            for number in range(int(message)):
                await call.answer(b"%d" % number)
        await call.end()

    async def sum(self, call):
        total = 0
        async for message in call.messages():
            total += int(message)
        await call.answer(b"%d" % total)
        await call.end()

    async def chat(self, call):
        async for message in call.messages():
            await call.answer(b"you said " + message)
        await call.end()

    async def fail(self, call):
        async for message in call.messages():
            await call.answer(message)
        await call.end(9, "not now")

    async def wait(self, call):
        await call.answer(b"waiting")
        async for _ in call.messages():
            pass
        await asyncio.Event().wait()

    async def listen(self, call):
        await call.answer(b"listening")
        await call._receive()
        while (await call._receive())["type"] != "http.disconnect":
            pass
        self.cancelled.append("Listen")

    async def raises(self, call):
        await call.answer(b"first")
        raise RuntimeError("by mistake")

    async def unknown(self, call):
        await call.end(12, "no such method")


def create_app(context):
    return Calculator()
