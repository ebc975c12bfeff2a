"""Apps that block their event loop, or hold the interpreter's lock, when they are asked to."""

import asyncio
import contextlib
import ctypes
import time
from urllib.parse import parse_qs

FOR_EVER = 600
"""Seconds: longer than any test may take."""

_KEEPS_THE_LOCK = ctypes.PyDLL(None)


def _query(scope):
    return {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}


def _spin(seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


def _compute_on(seconds):
    deadline = time.thread_time() + seconds
    while time.thread_time() < deadline:
        pass


def _hold(seconds):
    # Goes on after a signal, as most C code does.
    _KEEPS_THE_LOCK.system(f"sleep {seconds}".encode())


def _swallow_exceptions(seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            _spin(seconds)


def _swallow_all(seconds, times):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            _spin(seconds)
        except BaseException:
            times -= 1
            if times < 0:
                raise


def _wait_for_own_loop():
    """Waits for what only this loop could do: forever."""

    async def nothing():
        pass

    asyncio.run_coroutine_threadsafe(nothing(), asyncio.get_running_loop()).result()


def _compute(seconds):
    """Stay in one call of C code that computes for so long, however fast the machine is."""
    few = 2_000_000
    began = time.thread_time()
    sum(range(few))
    sum(range(int(few * seconds / (time.thread_time() - began))))


async def _do(query):
    seconds = float(query.get("seconds", FOR_EVER))
    match query.get("do", ""):
        case "spin":
            _spin(seconds)
        case "sleep":
            time.sleep(seconds)  # noqa: ASYNC251 - what is to be survived
        case "swallow":
            _swallow_exceptions(seconds)
        case "swallow-all":
            _swallow_all(seconds, int(query["times"]))
        case "wait":
            _wait_for_own_loop()
        case "select":
            # One call of C code without the lock, which nothing can end.
            ctypes.CDLL(None).usleep(int(seconds * 1e6))
        case "hold":
            _hold(seconds)
        case "hold-in-thread":
            await asyncio.to_thread(_hold, seconds)
        case "compute":
            _compute(seconds)
        case "segfault":
            ctypes.string_at(0)
        case "thread":
            await asyncio.to_thread(time.sleep, seconds)
        case "task":
            blocked = asyncio.create_task(_do({"do": "spin", "seconds": query["seconds"]}))
            await asyncio.wait({blocked})
        case "callback":
            asyncio.get_running_loop().call_soon(_spin, seconds)
            await asyncio.sleep(0)
            await asyncio.sleep(0)


async def _serve(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await _do(_query({"query_string": message["text"].encode()}))
            await send({"type": "websocket.send", "text": "done"})
    await _do(_query(scope))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def asked(context):
    """Does what the query string says, then answers."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan")
        await _serve(scope, receive, send)

    return app


def in_startup(context):
    """Blocks in its startup for `config.seconds` of its thread's own time, which no other work lengthens."""

    async def app(scope, receive, send):
        if scope["type"] != "lifespan":
            await _serve(scope, receive, send)
            return
        await receive()
        _compute_on(float(context.config.get("seconds", FOR_EVER)))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    return app
