"""A hog that takes, breaks or ends what it shares with others, when it is asked to."""

import asyncio
import json
import os
import signal
import sys
import threading
from urllib.parse import parse_qs

_of_the_module = []
_dumps = json.dumps


def memory(mib, kept):
    """Take memory and touch it."""
    kept.extend(b"x" * (1 << 20) for _ in range(mib))
    return f"{mib} MiB"


def threads(count):
    """Start threads that never end by themselves, but run Python code now and then."""
    started = 0
    ended = threading.Event()

    def wait():
        while not ended.wait(0.2):
            pass

    try:
        for _ in range(count):
            threading.Thread(target=wait, daemon=True).start()
            started += 1
    except RuntimeError as refused:
        return f"{started} threads, then {type(refused).__name__}"
    return f"{started} threads"


def stuck_threads(count):
    """Start threads that wait in C code for ever."""
    ended = threading.Lock()
    ended.acquire()
    for _ in range(count):
        threading.Thread(target=ended.acquire, daemon=True).start()
    return f"{count} threads"


def files(count, kept):
    """Open files and keep them open."""
    opened = 0
    try:
        for _ in range(count):
            kept.append(open(os.devnull))  # noqa: SIM115 - the leak
            opened += 1
    except OSError as refused:
        return f"{opened} files, then {type(refused).__name__}"
    return f"{opened} files"


async def logs(count):
    """Print lines, with a breath now and then, as a chatty app has."""
    for number in range(count):
        print(f"{number} " + "x" * 200)
        if number % 200 == 0:
            await asyncio.sleep(0)
    return f"{count} lines"


def fork():
    """Leave a child behind that waits for ever."""
    if os.fork() == 0:
        while True:
            signal.pause()
    return "forked"


def handle_signals():
    """Ignore what would end the process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return "handles signals"


def environment():
    """Change the environment."""
    os.environ["HOG"] = "was here"
    os.environ.pop("PATH", None)
    return f"HOG={os.environ['HOG']}, PATH={os.environ.get('PATH')}"


def change_directory():
    """Go elsewhere."""
    os.chdir("/")
    return os.getcwd()


def patch():
    """Replace a function of a library that everybody uses."""
    json.dumps = lambda *args, **kwargs: _dumps(*args, **kwargs) + " "
    return "patched"


def unpatch():
    """Put it back."""
    json.dumps = _dumps
    return "put back"


async def _do(what, count, kept):
    match what:
        case "logs":
            return await logs(count)
        case "memory" | "files":
            return globals()[what](count, kept)
        case "files_of_module":
            return files(count, _of_the_module)
        case "threads" | "stuck_threads":
            return globals()[what](count)
        case "fork" | "handle_signals" | "environment" | "change_directory" | "patch" | "unpatch":
            return globals()[what]()
        case "_exit":
            os._exit(3)
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop_loop":
            asyncio.get_running_loop().stop()
            return "stopped the loop"
        case "close_loop":
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.close)
            loop.stop()
            return "closed the loop"
    return "well"


def asked(context):
    """Does what the query string says and answers how it went: 403 if it was refused."""
    kept = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan")
        query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
        status = 200
        try:
            body = await _do(query.get("do", ""), int(query.get("count", 0)), kept)
        except PermissionError as refused:
            status, body = 403, str(refused)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body.encode()})

    return app
