"""An ASGI app whose paths do what a test asks for, misbehaviour above all."""

# ruff: noqa: ASYNC220, ASYNC222, ASYNC230, ASYNC251  (blocking its loop is what it is for)

import asyncio
import collections
import ctypes
import functools
import json
import logging
import mmap
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

state_seen: dict = {}
hoard: list = []


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    else:
        await http(scope, receive, send)


async def lifespan(receive, send):
    await receive()
    print("starting up")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if os.environ.get("SLOW_SHUTDOWN"):
        time.sleep(60)
    with open("shutdown-ran", "w") as file:
        file.write("yes")
    await send({"type": "lifespan.shutdown.complete"})


async def websocket(scope, receive, send):
    await receive()
    if scope["path"] == "/deny":
        await send({"type": "websocket.http.response.start", "status": 403, "headers": [(b"x-why", b"no")]})
        await send({"type": "websocket.http.response.body", "body": b"denied"})
        return
    if scope["path"] == "/push":
        await push(receive, send)
        return
    subprotocols = scope["subprotocols"]
    await send({"type": "websocket.accept", "subprotocol": subprotocols[0] if subprotocols else None})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print("disconnected", message["code"], flush=True)
            return
        if message.get("text") == "bye":
            await send({"type": "websocket.close", "code": 4001, "reason": "asked"})
            return
        if message.get("text") == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


async def push(receive, send):
    await send({"type": "websocket.accept"})
    heard = []
    try:
        while True:
            await send({"type": "websocket.send", "text": "news"})
            await asyncio.sleep(0.01)
    except OSError as error:
        heard.append(type(error).__name__)
    await asyncio.sleep(0)
    while heard[-1] != "websocket.disconnect":
        heard.append((await receive())["type"])
    with open("heard", "w") as file:
        file.write(" ".join(heard))


async def answer(send, body: bytes, status: int = 200):
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def http(scope, receive, send):
    path = scope["path"].removeprefix(scope["root_path"])
    query = scope["query_string"].decode()
    if path == "/scope":
        shown = {key: scope[key] for key in ("path", "root_path", "scheme", "http_version", "method")}
        shown |= {"client": scope["client"], "raw_path": scope["raw_path"].decode(), "query": query}
        shown["headers"] = [[n.decode("latin-1"), v.decode("latin-1")] for n, v in scope["headers"]]
        await answer(send, json.dumps(shown).encode())
    elif path == "/env":
        facts = {
            "env": dict(os.environ), "cwd": os.getcwd(), "umask": oct(os.umask(0o077)), "pid": os.getpid(),
            "sid": os.getsid(0), "fds": descriptors(), "argv": sys.argv,
            "grpc": "grpc" in sys.modules,
            "environ": Path("/proc/self/environ").read_text(),
        }  # fmt: skip
        await answer(send, json.dumps(facts).encode())
    elif path == "/echo":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})
            if not more:
                return
    elif path == "/big":
        await answer(send, b"x" * int(query))
    elif path == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sent = 0
        while True:
            await send({"type": "http.response.body", "body": b"y" * 65536, "more_body": True})
            sent += 65536
            with open("sent", "w") as file:
                file.write(str(sent))
            await asyncio.sleep(0)
    elif path == "/wait":
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            with open("cancelled", "w") as file:
                file.write("yes")
            raise
    elif path == "/wait-for-disconnect":
        events = [(await receive())["type"] for _ in range(2)]
        with open("disconnected", "w") as file:
            file.write(" ".join(events))
    elif path == "/raise":
        raise ValueError("a fault of the app")
    elif path == "/raise-cancelled":
        other = asyncio.create_task(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(other.cancel)
        await other
    elif path == "/half":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(0.05)
        ctypes.string_at(0)
    elif path == "/segfault":
        print("about to crash", file=sys.stderr)
        ctypes.string_at(0)
    elif path == "/exit":
        sys.exit(3)
    elif path == "/hard-exit":
        os._exit(int(query))
    elif path == "/callback-exit":
        asyncio.get_running_loop().call_soon(sys.exit, 4)
        await asyncio.sleep(10)
    elif path == "/eat":
        while True:
            hoard.append(b"z" * 1_000_000)
            await asyncio.sleep(0)
    elif path == "/gulp":
        hoard.append(b"z" * int(query))
        await answer(send, b"swallowed")
    elif path == "/gil-until-told":
        # As below, until a byte of a file is no zero any more: nothing of Python runs in between.
        with open("told", "wb") as file:
            file.write(b"\0")
        with open("told", "rb") as file, mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ) as told:
            collections.deque(iter(functools.partial(operator.getitem, told, 0), 1), maxlen=0)
        await answer(send, b"woke")
    elif path == "/gil":
        # One call into C that never lets go of the GIL and sees no signal, as long on any machine.
        few, before = 2_000_000, time.thread_time()
        sum(range(few))
        sum(range(int(few * float(query) / (time.thread_time() - before))))
        await answer(send, b"woke")
    elif path == "/sleep":
        time.sleep(float(query))
        await answer(send, b"woke")
    elif path == "/spin":
        end = time.monotonic() + float(query)
        while time.monotonic() < end:
            pass
        await answer(send, b"woke")
    elif path == "/fork":
        child = subprocess.Popen(["sleep", "300"], start_new_session=True)
        escaped = os.fork()
        if escaped == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(300)
            os._exit(0)
        os.waitpid(escaped, 0)
        await answer(send, str(child.pid).encode())
    elif path == "/bomb":
        for _ in range(2000):
            if os.fork() == 0:
                time.sleep(300)
                os._exit(0)
        await answer(send, b"survived")
    elif path == "/flood":
        for _ in range(int(query)):
            print("w" * 100)
        await answer(send, b"flooded")
    elif path == "/log":
        logging.getLogger("library").error("begin %s end", '"\n' * int(query))
        await answer(send, b"logged")
    else:
        await answer(send, b"ok")


def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def broken_import_target():
    raise AssertionError


def create_app(context):
    context.logger.info("made %s", context.app)
    logging.getLogger("library").warning("careful")

    async def made(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        facts = {
            "config": context.config, "env": context.env, "secrets": context.secrets,
            "database_url": context.database_url, "generation": context.generation,
            "instance": context.instance, "data_dir": str(context.data_dir),
        }  # fmt: skip
        await answer(send, json.dumps(facts).encode())

    return made


async def failing_startup(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        raise RuntimeError("no database here")
    await answer(send, b"never")
