"""A cheap open-loop HTTP client: a steady rate over kept connections to one app or to many in turn, every
failure counted, by phases.

As a process (`python -m tests.bench.load …`) it reads a phase's name per line from stdin, and at its end
prints what each phase saw. Latency runs from when a request was due, so a stalled server is not flattered.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
TICK = 0.002


@dataclass
class Phase:
    """What was seen of the requests that were due in one phase."""

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    due: int = 0
    """How many were due, answered yet or not."""


class Connection(asyncio.Protocol):
    """One kept connection with at most one request on it; knows Content-Length and chunked bodies' end."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._buffer = b""
        self._due: tuple[Phase, float] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: bytes, phase: Phase, due: float) -> None:
        assert self.transport is not None
        self._due = phase, due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, ended, body = self._buffer.partition(b"\r\n\r\n")
        if not ended:
            return
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        if at >= 0:
            if len(body) < int(lowered[at + 15 :].split(b"\r\n", 1)[0]):
                return
        elif b"chunked" in lowered and not body.endswith(b"0\r\n\r\n"):
            return
        self._buffer = b""
        status = head[9:12].decode()
        self._end("" if status == "200" else status)
        if b"connection: close" not in lowered:
            self._client.free(self)

    def connection_lost(self, broken: Exception | None) -> None:
        self.transport = None
        self._end("connection lost")
        self._client.lost()

    def _end(self, error: str) -> None:
        if self._due is None:
            return
        phase, due = self._due
        self._due = None
        phase.latencies.append(time.monotonic() - due)
        if error:
            phase.errors[error] += 1
        self._client.answered()


class Client:
    """Sends at a rate; requests that find no free connection wait for one, at their own cost."""

    def __init__(self, port: int, host: str, path: str, rate: float, connections: int, apps: int = 1) -> None:
        """Of several apps `{}` in the host is each one's number, and they are asked in turn."""
        self._port = port
        self._requests = itertools.cycle(
            [f"GET {path} HTTP/1.1\r\nHost: {host.format(it)}\r\n\r\n".encode() for it in range(apps)]
        )
        self._rate = rate
        self._connections = connections
        self._free: deque[Connection] = deque()
        self._waiting: deque[tuple[Phase, float]] = deque()
        self._open = 0
        self._under_way = 0
        self._opening: set[asyncio.Task[None]] = set()
        self._ended = False
        self.phases: dict[str, Phase] = {}
        self.phase = self.phases.setdefault("warm", Phase())

    def enter(self, name: str) -> None:
        self.phase = self.phases.setdefault(name, Phase())

    def free(self, connection: Connection) -> None:
        if self._waiting:
            connection.send(next(self._requests), *self._waiting.popleft())
        else:
            self._free.append(connection)

    def answered(self) -> None:
        self._under_way -= 1

    def lost(self) -> None:
        self._open -= 1
        if not self._ended:
            self._connect()

    def _connect(self) -> None:
        self._open += 1
        task = asyncio.create_task(self._open_one())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open_one(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._ended:
            try:
                _, made = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
            except OSError:
                self.phase.errors["refused"] += 1
                await asyncio.sleep(0.01)
            else:
                self.free(made)
                return

    async def run(self, ended: asyncio.Event) -> None:
        for _ in range(self._connections):
            self._connect()
        await asyncio.gather(*self._opening)
        due = time.monotonic()
        while not ended.is_set():
            now = time.monotonic()
            while due <= now:
                self._under_way += 1
                self.phase.due += 1
                while self._free and self._free[0].transport is None:
                    self._free.popleft()
                if self._free:
                    self._free.popleft().send(next(self._requests), self.phase, due)
                else:
                    self._waiting.append((self.phase, due))
                due += 1 / self._rate
            await asyncio.sleep(TICK)
        deadline = time.monotonic() + PATIENCE
        while self._under_way and time.monotonic() < deadline:  # noqa: ASYNC110 - for once, at the end
            await asyncio.sleep(TICK)
        self._ended = True
        if self._under_way:
            self.phase.errors["never answered"] += self._under_way
        while self._free:
            if (transport := self._free.popleft().transport) is not None:
                transport.close()
        await asyncio.sleep(0)

    def report(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"latencies": [round(value, 6) for value in phase.latencies], "errors": dict(phase.errors)}
            for name, phase in self.phases.items()
        }


class Load:
    """The client as a process of its own, so that it shares no interpreter with what it measures."""

    def __init__(
        self, port: int, host: str, *, rate: float, connections: int = 16, path: str = "/", apps: int = 1
    ) -> None:
        """See `Client`."""
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "tests.bench.load", "--port", str(port), "--host", host,
                "--path", path, "--rate", str(rate), "--connections", str(connections),
                "--apps", str(apps),
            ],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def enter(self, phase: str) -> None:
        """Count what is due from now on as that phase's."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{phase}\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Phase]:
        """Wait for what is under way and return every phase."""
        text, _ = self._process.communicate(timeout=PATIENCE + 10)
        return {
            name: Phase(found["latencies"], Counter(found["errors"]))
            for name, found in json.loads(text).items()
        }

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--apps", type=int, default=1)
    options = parser.parse_args()
    client = Client(options.port, options.host, options.path, options.rate, options.connections, options.apps)
    ended = asyncio.Event()
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)

    async def listen() -> None:
        while line := await commands.readline():
            client.enter(line.decode().strip())
        ended.set()

    listening = asyncio.create_task(listen())
    print("ready", flush=True)
    await client.run(ended)
    await listening
    print(json.dumps(client.report()))


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
