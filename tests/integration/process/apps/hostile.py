"""An ASGI app that tries to reach beyond its process: by what it shares with its node, by what it starts."""

# ruff: noqa: ASYNC251  (misbehaviour is what it is for)

import array
import asyncio
import ctypes
import gc
import json
import multiprocessing
import os
import resource
import signal
import socket
import struct
import sys
import time

from chaos import answer, lifespan

RTTIME = 15
kept = []


def module(name):
    return next(found for known, found in sys.modules.items() if known.endswith(f".process.{name}"))


def descriptors(word):
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if word in os.readlink(f"/proc/self/fd/{name}"):
                found.append(int(name))
        except OSError:
            continue
    return found


def control():
    for descriptor in descriptors("socket:"):
        sock = socket.socket(fileno=os.dup(descriptor))
        if sock.type == socket.SOCK_SEQPACKET:
            return sock
    raise LookupError


def connection(send):
    """The node's connection that this request came by."""
    while not hasattr(send, "__self__"):
        send = send.__closure__[0].cell_contents
    return send.__self__.connection


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    else:
        path = scope["path"].removeprefix(scope["root_path"]).lstrip("/").replace("-", "_")
        query = scope["query_string"].decode()
        if path in ACTIONS:
            await ACTIONS[path](query, receive, send)
        else:
            await answer(send, b"ok")


async def websocket(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    write = connection(send).write
    if scope["path"] == "/nested-close":
        payload = b"[" * 60_000
        write(struct.pack("<BI", 26, len(payload)) + payload)
    elif scope["path"] == "/empty-fragments":
        write(struct.pack("<BI", 25, 0) * 100_000)
    elif scope["path"] == "/wants":
        connection(send)._transport.pause_reading()
        write(struct.pack("<BI", 16, 0) * 900)
    await asyncio.sleep(60)


# --- the sign of life ---


async def truncate_beat(query, receive, send):
    outcome = []
    for descriptor in descriptors("memfd:"):
        for size in (1 << 20, 0):
            try:
                os.ftruncate(descriptor, size)
                outcome.append("done")
            except OSError as error:
                outcome.append(type(error).__name__)
    await asyncio.sleep(0.3)
    await answer(send, " ".join(outcome).encode())


async def forge_beat(query, receive, send):
    beat = next(found for found in gc.get_objects() if type(found).__name__ == "Beat")
    words = json.loads(query)
    beat._timer.cancel()
    beat._arm = lambda interval: None
    for index, value in enumerate(words):
        beat._words[index] = value
    signal.signal(module("guest_signals").INTERRUPT_SIGNAL, signal.SIG_IGN)
    time.sleep(60)


async def stop_itself(query, receive, send):
    os.kill(os.getpid(), signal.SIGSTOP)


# --- the control socket ---


async def nested_reports(query, receive, send):
    sock, null = control(), os.open(os.devnull, os.O_RDONLY)
    sock.setblocking(True)
    for _ in range(200):
        try:
            socket.send_fds(sock, [b"[" * 60_000], [null] * 8)
        except PermissionError:  # the kernel lets no descriptor through
            sock.send(b"[" * 60_000)
    await answer(send, b"sent")


async def report(query, receive, send):
    control().send(query.encode())
    await asyncio.sleep(60)


async def tell(query, receive, send):
    control().send(query.encode())
    await answer(send, b"told")


async def flood_reports(query, receive, send):
    sock = control()
    sock.setblocking(True)
    while True:
        sock.send(b'{"v":1,"op":"ready"}')


async def lingering_descriptor(query, receive, send):
    """Sends a TCP connection whose close waits for an hour for a peer that does not read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        full = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    kept.append(peer)
    full.setblocking(False)
    try:
        while True:
            full.send(b"x" * 65536)
    except BlockingIOError:
        pass
    full.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    where = control() if query == "control" else connection(send)._transport.get_extra_info("socket")
    carrier = socket.socket(fileno=os.dup(where.fileno()))
    outcome = b"sent"
    try:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [full.fileno()]))
        carrier.sendmsg([b"{}" if query == "control" else struct.pack("<BI", 16, 0)], [rights])
    except PermissionError:
        outcome = b"refused"
    full.close()
    await answer(send, outcome)


async def close_control(query, receive, send):
    carrier = control()
    number = next(
        descriptor for descriptor in descriptors("socket:")
        if descriptor != carrier.fileno()
        and os.fstat(descriptor).st_ino == os.fstat(carrier.fileno()).st_ino
    )  # fmt: skip
    carrier.close()
    os.close(number)
    await answer(send, b"closed")


async def close_everything(query, receive, send):
    os.closerange(3, 4096)
    await asyncio.sleep(60)


async def deaf(query, receive, send):
    carrier = control()
    loop = asyncio.get_running_loop()
    for descriptor in descriptors("socket:"):
        if os.fstat(descriptor).st_ino == os.fstat(carrier.fileno()).st_ino:
            loop.remove_reader(descriptor)
    carrier.close()
    await answer(send, b"deaf")
    connection(send).close()


# --- the connections of requests ---


async def string_body(query, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": "text"})


async def cancel_itself(query, receive, send):
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


async def empty_parts(query, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raw = connection(send)
    many = struct.pack("<BI", 18, 0) * 10_000
    while True:
        raw.write(many)
        await raw.drain()
        await asyncio.sleep(0)


async def after_the_end(query, receive, send):
    await answer(send, b"mine")
    start = module("frames").pack_start(200, [(b"x-forged", b"yes")])
    forged = struct.pack("<BI", 17, len(start)) + start + struct.pack("<BI", 19, 6) + b"forged"
    raw = connection(send)
    asyncio.get_running_loop().call_soon(raw.write, forged + struct.pack("<BI", 20, 0))


async def garbage(query, receive, send):
    connection(send).write(b"\xff" * 64)
    await asyncio.sleep(60)


async def many_headers(query, receive, send):
    pairs = struct.pack("<HI", 1, 0) + b"a"
    start = struct.pack("<HBI", 200, 0, 30_000) + pairs * 30_000
    connection(send).write(struct.pack("<BI", 17, len(start)) + start)
    await asyncio.sleep(60)


async def break_off(query, receive, send):
    connection(send).close()
    await asyncio.sleep(60)


async def sends_on(query, receive, send):
    """Returns while a task of its own still sends the body, or, with a query, raises."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    kept.append(asyncio.create_task(send({"type": "http.response.body", "body": bytes(20_000_000)})))
    await asyncio.sleep(0)
    if query:
        raise ValueError(query)


async def naive_fork(query, receive, send):
    """Forks as a C program would: both go on, on one loop and one connection."""
    os.fork()
    await answer(send, b"twice")


# --- what it writes ---


async def newlines(query, receive, send):
    chunk = b"\n" * 65536
    while True:
        await asyncio.to_thread(os.write, 1, chunk)


async def records(query, receive, send):
    log = next(found for found in gc.get_objects() if type(found).__name__ == "_NodeLogHandler")._descriptor
    for line in (
        "[" * 60_000, '[20, "n", Infinity, "when"]', '[20, "n", NaN, "when"]', '[20, "n", 1e300, "when"]',
        '[20, "n", -1e300, "when"]', '[1e999, "n", 1, "level"]', '[999999999999999999999, "n", 1, "level"]',
        '[20, "\\ud800", 1, "\\ud800 surrogate"]', '[20, {"a": 1}, 1, ["list"]]', "\udcff\udcfe",
        '[20, "n", 1, "last"]',
    ):  # fmt: skip
        os.write(log, line.encode(errors="surrogateescape") + b"\n")
    await answer(send, b"written")


# --- what it starts ---


def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def unmarked():
    resource.setrlimit(RTTIME, (7, 7))
    time.sleep(300)


async def unmarked_children(query, receive, send):
    pids = [child(unmarked) for _ in range(int(query))]
    await answer(send, json.dumps(pids).encode())


async def unmarked_orphan(query, receive, send):
    """A daemon as daemons are made, that has lost its mark as well."""
    await answer(send, json.dumps([daemon(unmarked)]).encode())


async def ordinary_daemon(query, receive, send):
    await answer(send, json.dumps([daemon(lambda: time.sleep(300))]).encode())


def daemon(work):
    read, write = os.pipe()

    def leave():
        os.setsid()
        pid = child(work)
        os.write(write, str(pid).encode())

    os.waitpid(child(leave), 0)
    pid = int(os.read(read, 100))
    os.close(read)
    os.close(write)
    return pid


async def escape_artists(query, receive, send):
    """Children that leave session and group, lose the mark, adopt orphans themselves, and fork on and on."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)

    def run():
        os.setsid()
        resource.setrlimit(RTTIME, (7, 7))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = time.monotonic() + 300
        while time.monotonic() < end:
            if os.fork() != 0:
                os._exit(0)
            time.sleep(0.001)

    for _ in range(3):
        child(run)
    await answer(send, b"running")


async def fork_and_terminate(query, receive, send):
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
    process.start()
    await asyncio.sleep(0.1)
    process.terminate()
    process.join(5)
    await answer(send, str(process.exitcode).encode())


async def terminate_itself(query, receive, send):
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(60)


async def hang_at_exit(query, receive, send):
    import atexit  # noqa: PLC0415

    atexit.register(time.sleep, 300)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(60)


ACTIONS = {name: found for name, found in list(globals().items()) if asyncio.iscoroutinefunction(found)}
del ACTIONS["app"], ACTIONS["websocket"]
