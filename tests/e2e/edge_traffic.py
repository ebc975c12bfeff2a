"""Mixed traffic through a gateway: who gave each answer, and what each failure said, is kept."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from tests.e2e.stack import DEADLINE, eventually


class EdgeTraffic:
    """Sends GETs, POSTs with bodies, streams of events, WebSockets and HTTP/2 to apps, until left."""

    def __init__(self, port: int, apps: Sequence[str], pause: float = 0.005) -> None:
        """`pause`: seconds between two requests of one kind."""
        self._port = port
        self._apps = itertools.cycle(apps)
        self._pause = pause
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        """Whole and right answers, by kind."""
        self.refused: Counter[str] = Counter()
        """Answers of a node or the gateway that say when to come again, by `kind status reason`."""
        self.wrong: list[str] = []
        """What another app has answered."""
        self.failed: list[str] = []
        """What was broken off, or answered otherwise."""
        kinds: dict[str, Callable[[str], None]] = {
            "get": self._get, "post": self._post, "events": self._events, "websocket": self._websocket,
        }  # fmt: skip
        if shutil.which("curl"):
            kinds["http2"] = self._http2
        self._threads = [
            threading.Thread(target=self._run, args=(kind, send), daemon=True) for kind, send in kinds.items()
        ]
        self.kinds = tuple(kinds)

    def __enter__(self) -> EdgeTraffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def goes_on(self, more: int = 3) -> None:
        """Wait until there have been some more answers of each kind."""
        before = self.answers.copy()
        eventually(
            lambda: all(self.answers[kind] >= before[kind] + more for kind in self.kinds),
            f"requests go on: {self.answers} {self.refused} {self.failed[-3:]}",
        )

    def _run(self, kind: str, send: Callable[[str], None]) -> None:
        while not self._ended.wait(self._pause):
            with self._lock:
                app = next(self._apps)
            try:
                send(app)
            except (OSError, http.client.HTTPException, InvalidHandshake) as broken:
                self.failed.append(f"{kind} {app} {broken!r}")

    def _judge(self, kind: str, app: str, status: int, headers: http.client.HTTPMessage, text: str) -> None:
        if status == 200:
            answered = json.loads(text)["app"]
            self._count(kind, app, answered)
        else:
            self._refuse(
                kind, app, status, headers.get("x-appsupervisor-reason", ""), "retry-after" in headers, text
            )

    def _refuse(self, kind: str, app: str, status: int, reason: str, retry: bool, text: str) -> None:
        if status == 503 and reason and retry:
            self.refused[f"{kind} {status} {reason}"] += 1
        else:
            self.failed.append(f"{kind} {app} {status} {reason} {text[:200]}")

    def _count(self, kind: str, app: str, answered: str) -> None:
        if answered == app:
            self.answers[kind] += 1
        else:
            self.wrong.append(f"{kind} {app} was answered by {answered}")

    def _get(self, app: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE)
        with contextlib.closing(connection):
            for _ in range(5):  # on one connection of the client's
                connection.request("GET", "/", headers={"Host": f"{app}.localhost"})
                answer = connection.getresponse()
                self._judge("get", app, answer.status, answer.headers, answer.read().decode())

    def _post(self, app: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("POST", "/", b"x" * 100_000, {"Host": f"{app}.localhost"})
            answer = connection.getresponse()
            self._judge("post", app, answer.status, answer.headers, answer.read().decode())

    def _events(self, app: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("GET", "/events/5", headers={"Host": f"{app}.localhost"})
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                self._judge("events", app, answer.status, answer.headers, text)
                return
            words = [line.split() for line in text.splitlines() if line]
            if [word[2] for word in words] != [str(number) for number in range(5)]:
                self.failed.append(f"events {app} {text!r}")
            else:
                self._count("events", app, words[0][1])

    def _websocket(self, app: str) -> None:
        wire = socket.create_connection(("127.0.0.1", self._port))
        url = f"ws://{app}.localhost:{self._port}/room"
        try:
            with connect(url, sock=wire, proxy=None, open_timeout=DEADLINE) as talk:
                for number in range(5):
                    talk.send(str(number))
                    self._count("websocket", app, str(talk.recv(timeout=DEADLINE)).split()[0])
        except ConnectionClosed as closed:
            # An app that is replaced says so (1012); a client opens another one.
            if closed.rcvd is None or closed.rcvd.code != 1012:
                raise OSError(f"closed with {closed.rcvd}") from closed
            self.refused["websocket 1012"] += 1
        except InvalidHandshake as refused:
            answer = getattr(refused, "response", None)
            if answer is None:
                raise
            headers = answer.headers
            reason, retry = headers.get("x-appsupervisor-reason", ""), "retry-after" in headers
            self._refuse("websocket", app, answer.status_code, reason, retry, repr(refused))

    def _http2(self, app: str) -> None:
        # One request each: some versions of curl cannot send a second one on such a connection.
        command = ["curl", "-sS", "--http2-prior-knowledge", "-m", "60", "-H", f"host: {app}.localhost"]
        command += [
            "-w",
            "\n%{http_code} %{http_version} %header{x-appsupervisor-reason} %header{retry-after}",
        ]
        command.append(f"http://127.0.0.1:{self._port}/")
        ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        text, _, told = ended.stdout.rpartition("\n")
        words = told.split()
        if words[:2] == ["200", "2"]:
            self._count("http2", app, json.loads(text)["app"])
        else:
            reason = words[2] if len(words) > 2 else ""
            self._refuse("http2", app, int(words[0]), reason, len(words) > 3, f"{text} {ended.stderr}")
