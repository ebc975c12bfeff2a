"""What tests do with apps: change them, and send them requests, singly, at a steady rate or all at once."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any, Literal

from google.longrunning import operations_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from websockets.sync.client import ClientConnection, connect

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from tests.e2e.stack import DEADLINE, Stack

KEPT_SECONDS = 2.0
"""How long a connection may be idle and be used again: a node of an earlier version closes it after 5 s."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: HTTPMessage
    text: str

    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def reason(self) -> str | None:
        """Why the node itself answered; None for an answer of the app's."""
        return self.headers["x-appsupervisor-reason"]


def ask(
    stack: Stack,
    app: str,
    path: str = "/",
    method: str = "GET",
    body: str | bytes | None = None,
    *,
    by: Literal["host", "path"] = "host",
    headers: Mapping[str, str] | None = None,
    timeout: float = DEADLINE,
) -> Answer:
    """Send one request on a connection of its own. Raises OSError or HTTPException if no answer came."""
    connection = HTTPConnection("127.0.0.1", stack.http_port(), timeout=timeout)
    with contextlib.closing(connection):
        return _exchange(connection, app, path, method, body, by=by, headers=headers)


def _exchange(
    connection: HTTPConnection,
    app: str,
    path: str,
    method: str = "GET",
    body: str | bytes | None = None,
    *,
    by: str = "host",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    told = dict(headers or {})
    if by == "host":
        told["Host"] = f"{app}.localhost"
    else:
        path = f"/apps/{app}{path}"
    connection.request(method, path, body.encode() if isinstance(body, str) else body, told)
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read().decode("utf-8", "replace"))


def data_dir(stack: Stack, app: catalog.App) -> Path:
    """Return where an app's node keeps its data."""
    return stack.folder / "node-1/apps" / f"{app.name.removeprefix('apps/')}.{app.uid}"


def update(stack: Stack, app_id: str, *paths: str, **fields: Any) -> catalog.App:
    """Change an app and return it when the change is carried out; fails if that failed."""
    request = catalog.UpdateAppRequest(app=catalog.App(name=f"apps/{app_id}", **fields))
    request.update_mask.paths.extend(paths or fields)
    return stack.result(stack.apps.UpdateApp(request, timeout=DEADLINE))


def delete(stack: Stack, app_id: str) -> None:
    """Delete an app with its data."""
    request = catalog.DeleteAppRequest(name=f"apps/{app_id}", data_policy=catalog.DeleteAppRequest.DROP)
    stack.result(stack.apps.DeleteApp(request, timeout=DEADLINE))


def reason_of(operation: operations_pb2.Operation) -> str:
    """Return the reason with which an operation failed, or "" if it did not."""
    return info_of(operation).reason


def info_of(operation: operations_pb2.Operation) -> ErrorInfo:
    """Return the ErrorInfo with which an operation failed, an empty one if it did not."""
    info = ErrorInfo()
    any(detail.Unpack(info) for detail in operation.error.details)
    return info


def websocket(stack: Stack, app: str, path: str, *, by: Literal["host", "path"] = "host") -> ClientConnection:
    """Open a WebSocket to an app."""
    port = stack.http_port()
    url = f"ws://{app}.localhost:{port}{path}" if by == "host" else f"ws://127.0.0.1:{port}/apps/{app}{path}"
    return connect(url, sock=socket.create_connection(("127.0.0.1", port)), open_timeout=DEADLINE, proxy=None)


def burst(stack: Stack, app: str, count: int, path: str = "/") -> list[Answer]:
    """Send `count` requests at the same moment and return their answers."""
    ready = threading.Barrier(count)

    def one(_: int) -> Answer:
        connection = HTTPConnection("127.0.0.1", stack.http_port(), timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.connect()
            ready.wait(DEADLINE)
            return _exchange(connection, app, path)

    with ThreadPoolExecutor(count) as senders:
        return list(senders.map(one, range(count)))


@dataclass
class Traffic:
    """What a steady flow of requests met with."""

    answers: int = 0
    failures: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """The different bodies that came."""


@contextlib.contextmanager
def traffic(
    stack: Stack, app: str, path: str, *, per_second: int = 200, senders: int = 8
) -> Iterator[Traffic]:
    """Send GET requests at a steady rate, on connections that are kept, while the block runs."""
    flow = Traffic()
    ended = threading.Event()
    lock = threading.Lock()

    def send(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", stack.http_port(), timeout=DEADLINE)
        due = used = time.monotonic() + number / per_second
        with contextlib.closing(connection):
            while not ended.wait(max(0.0, due - time.monotonic())):
                began = time.monotonic()
                due = max(due + senders / per_second, began - 0.1)
                if began - used > KEPT_SECONDS:
                    connection.close()  # the next request opens another
                used = began
                try:
                    answer = _exchange(connection, app, path)
                    failure = "" if answer.status == 200 else f"{answer.status} {answer.text}"
                except (OSError, http.client.HTTPException) as broken:
                    failure, answer = f"{type(broken).__name__} {broken}", None
                    connection.close()
                with lock:
                    if failure or answer is None:
                        flow.failures.append(failure)
                    else:
                        flow.answers += 1
                        flow.seen.add(answer.text)

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(senders)]
    for thread in threads:
        thread.start()
    try:
        yield flow
    finally:
        ended.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
