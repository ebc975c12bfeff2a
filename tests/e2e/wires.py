"""Clients' connections of HTTP/1.1 and HTTP/2 (RFC 9113, 7541): one request at a time, with little work."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_STATUS, _RETRY_AFTER = 8, 53
"""Indexes of names in HPACK's static table."""
_STATUSES = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}
_WINDOW_BYTES = (1 << 31) - 1


class WireError(Exception):
    """The other side broke off, or a rule of the protocol."""


@dataclass(frozen=True)
class Answer:
    """What came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Http1Wire:
    """A connection that is opened with the next request, and anew after so many."""

    def __init__(self, port: int, requests: int) -> None:
        self._port = port
        self._requests = requests
        self._left = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, host: str, body: bytes) -> Answer:
        """Send a request and return the whole answer. Raises OSError, EOFError and WireError."""
        reader, writer = await self._open()
        head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        if "content-length" in headers:
            answer = await reader.readexactly(int(headers["content-length"]))
        else:
            parts = []
            while size := int(await reader.readuntil(b"\r\n"), 16):
                parts.append((await reader.readexactly(size + 2))[:-2])
            await reader.readexactly(2)
            answer = b"".join(parts)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(first.split()[1]), headers, answer)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self._left:
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            self._left = self._requests
        self._left -= 1
        return self._streams

    def close(self) -> None:
        """Close; the next request opens another one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Http2Wire(Http1Wire):
    """The same with HTTP/2, by prior knowledge. Of the headers the status and whether to retry are told."""

    def __init__(self, port: int, requests: int) -> None:
        super().__init__(port, requests)
        self._stream = -1

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        was = self._streams
        streams = await super()._open()
        if streams != was:
            self._stream = -1
            # No table of headers that have been sent before (1: 0).
            streams[1].write(_PREFACE + _frame(_SETTINGS, 0, 0, struct.pack(">HI", 1, 0)))
        return streams

    async def ask(self, method: str, path: str, host: str, body: bytes) -> Answer:
        """As over HTTP/1.1; `body` must be empty."""
        reader, writer = await self._open()
        self._stream += 2
        # :method, :scheme and :path by their places in the static table, :authority and a path in letters.
        block = bytes([{"GET": 0x82, "POST": 0x83}[method], 0x86])
        block += b"\x84" if path == "/" else b"\x04" + _text(path)
        block += b"\x01" + _text(host)
        writer.write(_frame(_HEADERS, _END_HEADERS | _END_STREAM, self._stream, block))
        status, headers, parts, ended = 0, dict[str, str](), list[bytes](), False
        leaves = False
        while not ended:
            size, kind, flags, stream = _unpack(await reader.readexactly(9))
            payload = await reader.readexactly(size)
            if kind == _SETTINGS and not flags & _ACK:
                writer.write(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                writer.write(_frame(_PING, _ACK, 0, payload))
            elif kind == _GOAWAY:
                leaves = True
                if int.from_bytes(payload[:4]) < self._stream:
                    raise WireError("the connection ended before the request was taken")
            elif stream != self._stream:
                continue
            elif kind == _HEADERS:
                status, headers = _read_head(payload)
            elif kind == _DATA:
                parts.append(payload)
                if size:
                    writer.write(_frame(_WINDOW, 0, 0, struct.pack(">I", size)))
            elif kind == _RESET:
                raise WireError(f"the stream was reset: {payload.hex()}")
            ended = stream == self._stream and bool(flags & _END_STREAM) and kind in {_DATA, _HEADERS}
        if leaves:
            self.close()
        answer = b"".join(parts)
        if status != 200 and answer.startswith(b"{"):
            headers["x-appsupervisor-reason"] = json.loads(answer).get("reason", "")
        return Answer(status, headers, answer)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _unpack(head: bytes) -> tuple[int, int, int, int]:
    kind, flags, stream = struct.unpack(">BBI", head[3:])
    return int.from_bytes(head[:3]), kind, flags, stream & _WINDOW_BYTES


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _read_head(block: bytes) -> tuple[int, dict[str, str]]:
    """Return the status, and `retry-after` if it is there; other names may be written in Huffman's code."""
    at, status, headers = 0, 0, dict[str, str]()
    while at < len(block):
        first = block[at]
        if first & 0x80:
            index, at = _number(block, at, 7)
            status = _STATUSES.get(index, status)
            continue
        if first & 0xE0 == 0x20:
            _, at = _number(block, at, 5)
            continue
        index, at = _number(block, at, 6 if first & 0x40 else 4)
        if not index:
            _, at = _string(block, at)
        value, at = _string(block, at)
        if index == _STATUS:
            status = int(value)
        elif index == _RETRY_AFTER:
            headers["retry-after"] = value
    return status, headers


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    limit = (1 << bits) - 1
    value = block[at] & limit
    at += 1
    shift = 0
    while value >= limit:
        value += (block[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not block[at - 1] & 0x80:
            break
    return value, at


def _string(block: bytes, at: int) -> tuple[str, int]:
    """Return a text and where it ends; of Huffman's code digits alone are read, which begin it."""
    size, start = _number(block, at, 7)
    raw = block[start : start + size]
    if not block[at] & 0x80:
        return raw.decode("latin-1"), start + size
    bits = "".join(f"{byte:08b}" for byte in raw)
    digits = ""
    while len(bits) >= 5:
        code = int(bits[:5], 2)
        if code < 3:
            digits, bits = digits + str(code), bits[5:]
        elif len(bits) >= 6 and 25 <= int(bits[:6], 2) <= 31:
            digits, bits = digits + str(int(bits[:6], 2) - 22), bits[6:]
        else:
            break
    return digits, start + size
