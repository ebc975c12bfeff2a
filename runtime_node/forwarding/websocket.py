"""Carries one WebSocket to the node that its app has moved to: message by message, with its own ends of both.

Each side's pings, limits and silence are its own affair; a side that goes is told to the other.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets

from websockets.exceptions import InvalidState, ProtocolError

from runtime_node.asgi import Receive, Scope, Send
from runtime_node.forwarding.carried import BrokenLinkError
from runtime_node.forwarding.carrier import Carrier
from runtime_node.forwarding.heads import request_head, response_headers
from runtime_node.forwarding.link import Link
from runtime_node.http.websocket_wire import ClientWire, Closed, Incoming

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Of an app's message; as much as a guest may send."""
SILENCE_SECONDS = 60.0
"""A node asks after each WebSocket that is silent for 20 s: one that does not is gone."""
HANDSHAKE_SECONDS = 30.0
_MOST_ANSWER_BYTES = 1024 * 1024
_OWN_BYTES = 16 * 1024
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_GOING_AWAY, _RESTART, _TRY_LATER = 1001, 1012, 1013


class WebSocketRelay:
    """One WebSocket; `run` carries it from its handshake to its end."""

    def __init__(self, carrier: Carrier, scope: Scope, receive: Receive, send: Send) -> None:
        """Make its handshake. Raises UnsendableError."""
        self._carrier = carrier
        self._receive = receive
        self._send = send
        key = base64.b64encode(secrets.token_bytes(16))
        self._accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        self._head = request_head(scope, carrier.node, key)
        self._wire = ClientWire(MAX_MESSAGE_BYTES)
        self._counted = 0
        self._left = False

    async def run(self, link: Link) -> None:
        """Carry it over `link`, which is closed in the end.

        Raises BrokenLinkError when the other node breaks off before it has answered.
        """
        try:
            await self._receive()  # "websocket.connect", which the other node tells its app itself
            link.be_patient(True)
            link.begin(head_only=False)
            link.write(self._head.data)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await link.head()
            if link.status != 101:
                await self._deny(link)
                return
            headers = dict(link.headers)
            if headers.get(b"sec-websocket-accept") != self._accept:
                raise BrokenLinkError("it answered another handshake")
            protocol = headers.get(b"sec-websocket-protocol", b"").decode("latin-1")
            kept = response_headers(link.headers, handshake=True)
            await self._send({"type": "websocket.accept", "subprotocol": protocol or None, "headers": kept})
            await self._talk(link)
        except TimeoutError:
            raise BrokenLinkError("it did not answer the handshake in time") from None
        finally:
            self._count(0)
            # Closed only behind what is written: the app there is told why.
            link.transport.close() if link.upgraded else link.transport.abort()

    async def _deny(self, link: Link) -> None:
        body = b""
        while piece := await link.read():
            body += piece
            if len(body) > _MOST_ANSWER_BYTES:
                raise BrokenLinkError("its answer to a handshake is too long")
        await self._send(
            {
                "type": "websocket.http.response.start",
                "status": link.status,
                "headers": response_headers(link.headers, handshake=True),
            }
        )
        await self._send({"type": "websocket.http.response.body", "body": body})

    async def _talk(self, link: Link) -> None:
        pulling = asyncio.get_running_loop().create_task(self._pull(link))
        code, reason = _RESTART, ""
        try:
            code, reason = await self._push(link)
        except (BrokenLinkError, TimeoutError):
            pass
        finally:
            pulling.cancel()
            # What the other side is owed, if this one has ended: nothing, where it has closed itself.
            if self._wire.close(_GOING_AWAY):
                link.write(self._wire.output())
        if not self._left:
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _push(self, link: Link) -> tuple[int, str]:
        """Pass on what the app says, until it closes; return how."""
        wire = self._wire
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                data = await link.read()
            if not data:
                return _RESTART, ""
            wire.feed(data)
            while True:
                event = wire.step()
                answer = wire.output()
                # A node that does not read is owed no pong; waiting for it would hold up what it says.
                if answer and (isinstance(event, Closed) or not link.flow.write_paused):
                    link.write(answer)
                if isinstance(event, Closed):
                    # 1005 and 1006 are never sent: they say that nothing was.
                    told = event.code if event.code not in (1005, 1006) else 1000
                    return told, event.reason
                if isinstance(event, Incoming):
                    await self._send({"type": "websocket.send", **_body(event.data)})
                elif event is None:
                    if not wire.pending:
                        break
                    await asyncio.sleep(0)  # many frames that make no message keep nobody else waiting
            self._count(wire.held)
            if self._carrier.held > self._carrier.limits.max_held_bytes and wire.held > _OWN_BYTES:
                wire.close(_TRY_LATER)
                link.write(wire.output())
                return _TRY_LATER, "too much is on its way"

    def _count(self, held: int) -> None:
        self._carrier.held += held - self._counted
        self._counted = held

    async def _pull(self, link: Link) -> None:
        """Pass on what the client says, until it is gone."""
        wire = self._wire
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                self._left = True
                try:
                    wire.close(message.get("code") or _GOING_AWAY, message.get("reason") or "")
                except ProtocolError:
                    wire.close(_GOING_AWAY)
                link.write(wire.output())
                link.transport.close()
                return
            text = message.get("text")
            try:
                wire.send(text if text is not None else message["bytes"])
            except InvalidState:
                return  # the other side has closed
            link.write(wire.output())
            await link.flow.drain()


def _body(data: str | bytes) -> dict[str, str | bytes]:
    return {"text": data} if isinstance(data, str) else {"bytes": data}
