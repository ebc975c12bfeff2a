"""Mixed traffic through a gateway: who gave each answer, and what each failure said, is kept.

One thread with raw sockets, so that the machine's cores are left to what is tested.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.e2e.stack import DEADLINE, eventually
from tests.e2e.wires import Answer, Http1Wire, Http2Wire, WireError

BODY = b"x" * 100_000
SHARES = {"get": 0.5, "post": 0.1, "events": 0.1, "websocket": 0.15, "http2": 0.15}
"""Of all requests; a message over a WebSocket counts as one."""
MESSAGES = 5
"""Over one WebSocket, which is then opened anew; also events of one stream."""
PER_CONNECTION = 50
"""Requests, after which a client opens another connection."""

Send = Callable[[str], Awaitable[None]]


class EdgeTraffic:
    """Sends GETs, POSTs with bodies, streams of events, WebSockets and HTTP/2 to apps, until left."""

    def __init__(self, port: int, apps: Sequence[str], rate: float = 200.0, width: int = 1) -> None:
        """`rate`: requests a second that are aimed at; `width`: clients of each kind, each with one request
        at a time."""
        self._port = port
        self._apps = itertools.cycle(apps)
        self._rate = rate
        self._width = width
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = self._took = 0.0
        self.answers: Counter[str] = Counter()
        """Whole and right answers, by kind."""
        self.refused: Counter[str] = Counter()
        """Answers of a node or the gateway that say when to come again, by `kind status reason`."""
        self.wrong: list[str] = []
        """What another app has answered."""
        self.failed: list[str] = []
        """What was broken off, or answered otherwise."""
        self.kinds = tuple(SHARES)

    def __enter__(self) -> EdgeTraffic:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(2 * DEADLINE)
        if self._thread.is_alive():
            self.failed.append("the traffic does not end")

    @property
    def rate(self) -> float:
        """Whole answers a second from the beginning to the end."""
        return sum(self.answers.values()) / self._took if self._took else 0.0

    def goes_on(self, more: int = 3) -> None:
        """Wait until there have been some more answers of each kind."""
        before = self.answers.copy()
        eventually(
            lambda: all(self.answers[kind] >= before[kind] + more for kind in self.kinds),
            f"requests go on: {self.answers} {self.refused} {self.failed[-3:]}",
        )

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._all())
        self._took = time.monotonic() - self._began

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for kind, share in SHARES.items():
                each = MESSAGES if kind == "websocket" else 1
                pause = self._width * each / (self._rate * share)
                for _ in range(self._width):
                    clients.create_task(self._client(kind, pause))

    async def _client(self, kind: str, pause: float) -> None:
        """Send one after the other; what came late is not caught up with."""
        loop = asyncio.get_running_loop()
        wire: Http1Wire | Http2Wire = (Http2Wire if kind == "http2" else Http1Wire)(
            self._port, PER_CONNECTION
        )
        due = loop.time()
        try:
            while not self._ended.is_set():
                app = next(self._apps)
                try:
                    async with asyncio.timeout(DEADLINE):
                        if kind == "websocket":
                            await self._websocket(app)
                        else:
                            await self._request(kind, wire, app)
                except (OSError, EOFError, TimeoutError, WireError, InvalidHandshake) as broken:
                    self.failed.append(f"{kind} {app} {broken!r}")
                    wire.close()
                due = max(due + pause, loop.time())
                await asyncio.sleep(due - loop.time())
        finally:
            wire.close()

    async def _request(self, kind: str, wire: Http1Wire | Http2Wire, app: str) -> None:
        method, path, body = {
            "post": ("POST", "/", BODY), "events": ("GET", f"/events/{MESSAGES}", b""),
        }.get(kind, ("GET", "/", b""))  # fmt: skip
        answer = await wire.ask(method, path, f"{app}.localhost", body)
        if answer.status != 200:
            self._refuse(kind, app, answer)
        elif kind == "events":
            words = [line.split() for line in answer.body.decode().splitlines() if line]
            if [word[2] for word in words] != [str(number) for number in range(MESSAGES)]:
                raise WireError(f"events {answer.body!r}")
            self._count(kind, app, words[0][1])
        else:
            told = json.loads(answer.body)
            if told["length"] != len(body):
                raise WireError(f"{told['length']} of {len(body)} bytes arrived")
            self._count(kind, app, told["app"])

    async def _websocket(self, app: str) -> None:
        wire = socket.create_connection(("127.0.0.1", self._port))
        url = f"ws://{app}.localhost:{self._port}/room"
        try:
            async with connect(url, sock=wire, proxy=None, compression=None) as talk:
                for number in range(MESSAGES):
                    await talk.send(str(number))
                    who, what = str(await talk.recv()).split()
                    if what != str(number):
                        raise WireError(f"{what} for {number}")
                    self._count("websocket", app, who)
        except ConnectionClosed as closed:
            # An app that is replaced says so (1012); a client opens another one.
            if closed.rcvd is None or closed.rcvd.code != 1012:
                raise WireError(f"closed with {closed.rcvd}") from closed
            self.refused["websocket 1012"] += 1
        except InvalidStatus as refused:
            answer = refused.response
            self._refuse(
                "websocket", app, Answer(answer.status_code, dict(answer.headers.items()), answer.body or b"")
            )

    def _refuse(self, kind: str, app: str, answer: Answer) -> None:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        reason = headers.get("x-appsupervisor-reason", "")
        if answer.status == 503 and reason and "retry-after" in headers:
            self.refused[f"{kind} {answer.status} {reason}"] += 1
        else:
            self.failed.append(f"{kind} {app} {answer.status} {reason} {answer.body[:200]!r}")

    def _count(self, kind: str, app: str, answered: str) -> None:
        if answered == app:
            self.answers[kind] += 1
        else:
            self.wrong.append(f"{kind} {app} was answered by {answered}")
