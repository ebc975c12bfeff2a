"""Whatever a guest's side of a connection sends, the node's side ends with a verdict."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime_node.http.problems import problem_of
from runtime_node.tiers.process import frames, proxy
from runtime_node.tiers.process.frames import Frame, frame
from runtime_node.tiers.process.proxy import AppRaisedError, GuestProxy
from services.rpc.errors import SupervisorError
from tests.eventually import WITHIN

START = frames.pack_start(200, [(b"content-type", b"text/plain")])
KINDS = st.one_of(st.sampled_from(Frame), st.integers(0, 255))
PAYLOADS = st.one_of(st.binary(max_size=40), st.just(START), st.just(b"[" * 5_000))
RAW_FRAMES = st.tuples(KINDS, PAYLOADS).map(lambda it: frames.HEADER.pack(it[0], len(it[1])) + it[1])
STREAMS = st.lists(st.one_of(st.binary(max_size=30), RAW_FRAMES), max_size=8).map(b"".join)
SCOPE: dict[str, Any] = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": "/",
    "raw_path": b"/", "query_string": b"", "root_path": "", "scheme": "http", "headers": [], "client": None,
    "server": None, "subprotocols": [],
}  # fmt: skip


async def carry(
    kind: str, stream: bytes, alive: bool, **scope: Any
) -> tuple[BaseException | None, list[str], list[str]]:
    """Send a request to a guest that answers `stream`; return its error, what was sent, the complaints."""
    complaints: list[str] = []
    peers: list[socket.socket] = []

    def answer(theirs: socket.socket) -> None:
        peer = socket.socket(fileno=os.dup(theirs.fileno()))
        peers.append(peer)
        peer.sendall(stream)
        peer.shutdown(socket.SHUT_WR)  # and it reads nothing

    guest = GuestProxy(answer, "apps/a/instances/b", lambda: alive, complaints.append)
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        if kind == "websocket":
            return {"type": "websocket.connect"} if not sent else {"type": "websocket.receive", "text": "x"}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message["type"])
        await asyncio.sleep(0)

    try:
        async with asyncio.timeout(WITHIN):
            await guest({**SCOPE, "type": kind, **scope}, receive, send)
    except Exception as error:
        return error, sent, complaints
    finally:
        guest.end(None)
        await asyncio.sleep(0)
        for peer in peers:
            peer.close()
    return None, sent, complaints


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "VERDICT_SECONDS", 0.0)


@settings(deadline=None)  # what it measures is the machine's other work
@given(st.sampled_from(["http", "websocket"]), STREAMS, st.booleans())
@example("http", frame(Frame.START, START) + frame(Frame.LAST, b"ok") + frame(Frame.END), True)
@example("websocket", frame(Frame.CLOSE, b"["), True)
@example("websocket", frame(Frame.ACCEPT, b"\xff\xff"), True)
@example("http", frame(Frame.FAULT), False)
def test_any_answer_ends_in_a_verdict(kind: str, stream: bytes, alive: bool) -> None:
    error, sent, complaints = asyncio.run(carry(kind, stream, alive))
    assert error is None or isinstance(error, SupervisorError | AppRaisedError)
    assert all(message.startswith(kind) for message in sent)
    if isinstance(error, SupervisorError):
        assert error.reason in ("APP_CRASHED", "APP_BLOCKED_LOOP")
    if complaints:
        assert len(complaints) == 1


@pytest.mark.parametrize("opened", [False, True])
async def test_a_node_that_can_open_nothing_more_blames_no_app(
    monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    guest = GuestProxy(refuse, "apps/a/instances/b", lambda: True, pytest.fail)
    if not opened:
        monkeypatch.setattr(proxy.socket, "socketpair", refuse)
    with pytest.raises(SupervisorError) as refused:
        await guest(dict(SCOPE), refuse, refuse)  # type: ignore[arg-type]
    assert (refused.value.reason, problem_of(refused.value).status) == ("NODE_FULL", 503)


async def test_a_whole_answer_is_passed_on_and_the_connection_kept() -> None:
    stream = frame(Frame.START, START) + frame(Frame.LAST, b"ok") + frame(Frame.END)
    error, sent, complaints = await carry("http", stream, True)
    assert (error, complaints) == (None, [])
    assert sent == ["http.response.start", "http.response.body"]


async def test_trailers_pass_where_they_were_offered_and_announced_and_nowhere_else() -> None:
    announced = frame(Frame.START, frames.pack_start(200, [], True))
    rest = frame(Frame.LAST, b"ok") + frame(Frame.TRAILERS, START) + frame(Frame.END)
    offered = {"http_version": "2", "extensions": {"http.response.trailers": {}}}
    error, sent, complaints = await carry("http", announced + rest, True, **offered)
    assert (error, complaints) == (None, [])
    assert sent == ["http.response.start", "http.response.body", "http.response.trailers"]
    for start, scope in ((announced, {}), (frame(Frame.START, START), offered)):
        error, sent, complaints = await carry("http", start + rest, True, **scope)
        assert isinstance(error, SupervisorError)
        assert len(complaints) == 1
        assert "http.response.trailers" not in sent


@pytest.mark.parametrize(("alive", "verdict"), [(True, AppRaisedError), (False, SupervisorError)])
async def test_a_connection_that_breaks_off_is_the_apps_fault_or_its_processes_end(
    alive: bool, verdict: type[Exception]
) -> None:
    error, _, _ = await carry("http", frame(Frame.START, START), alive)
    assert type(error) is verdict
