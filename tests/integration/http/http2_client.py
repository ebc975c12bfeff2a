"""A client of HTTP/2 that does what it is told, also what no client should."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from tests.eventually import WITHIN

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
CANCEL, REFUSED_STREAM, INTERNAL_ERROR, FRAME_SIZE_ERROR, PROTOCOL_ERROR, CALM = 8, 7, 2, 6, 1, 11
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def head(
    method: str = "GET", path: str = "/", host: str = "a.localhost", **more: str
) -> list[tuple[str, str]]:
    fields = [(":method", method), (":scheme", "http"), (":authority", host), (":path", path)]
    return fields + [(name.replace("_", "-"), value) for name, value in more.items()]


@dataclass
class Response:
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.headers.get(":status", 0))

    @property
    def reason(self) -> str:
        return self.headers.get("x-appsupervisor-reason", "")


class Client:
    """One connection; `read_until` reads what the server says until something is so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="latin-1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.engine = h2.connection.H2Connection(config)
        self.engine.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.engine.initiate_connection()
        self.responses: dict[int, Response] = {}
        self.goaway: int | None = None
        self.closed = False
        self.acknowledges = True
        self.acknowledged_settings = False

    def flush(self) -> None:
        self.writer.write(self.engine.data_to_send())

    def ask(self, fields: list[tuple[str, str]], body: bytes | None = None, *, end: bool = True) -> int:
        number = self.engine.get_next_available_stream_id()
        self.engine.send_headers(number, fields, end_stream=end and body is None)
        if body is not None:
            self.engine.send_data(number, body, end_stream=end)
        self.responses[number] = Response()
        self.flush()
        return number

    def say(self, number: int, body: bytes, *, end: bool = False) -> None:
        self.engine.send_data(number, body, end_stream=end)
        self.flush()

    def reset(self, number: int) -> None:
        self.engine.reset_stream(number, 8)
        self.flush()

    async def answer(self, number: int) -> Response:
        response = self.responses[number]
        await self.read_until(lambda: response.ended or response.reset is not None)
        return response

    async def get(self, path: str = "/", **more: str) -> Response:
        return await self.answer(self.ask(head(path=path, **more)))

    async def read_until(self, holds) -> None:
        async with asyncio.timeout(WITHIN):
            while not holds():
                assert not self.closed, (self.goaway, self.responses)
                await self.read()

    async def read(self) -> None:
        try:
            data = await self.reader.read(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.engine.receive_data(data):
            self._take(event)
        with contextlib.suppress(ConnectionError):
            self.flush()

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.SettingsAcknowledged():
                self.acknowledged_settings = True
            case h2.events.ResponseReceived():
                self.responses[event.stream_id].headers = dict(event.headers)
            case h2.events.TrailersReceived():
                self.responses[event.stream_id].trailers = dict(event.headers)
            case h2.events.DataReceived():
                self.responses[event.stream_id].body += event.data
                if self.acknowledges:
                    self.engine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.responses[event.stream_id].ended = True
            case h2.events.StreamReset():
                self.responses[event.stream_id].reset = int(event.error_code)
            case h2.events.ConnectionTerminated():
                self.goaway = int(event.error_code)

    async def end_of_words(self) -> None:
        """Read until the server has said that it is the end, or closes."""
        await self.read_until(lambda: self.goaway is not None or self.closed)

    async def flood(self, write: Callable[[], object]) -> None:
        """Write the same again and again until the server has said that it is the end, or closes."""

        async def go_on() -> None:
            # After the server's last word `h2` writes nothing more.
            with contextlib.suppress(ConnectionError, h2.exceptions.ProtocolError):
                while True:
                    write()
                    await self.writer.drain()
                    await asyncio.sleep(0)

        writing = asyncio.create_task(go_on())
        try:
            await self.end_of_words()
        finally:
            writing.cancel()

    async def end(self) -> int | None:
        """Read until the server closes; return the code of its GOAWAY."""
        await self.read_until(lambda: self.closed)
        return self.goaway

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
