"""Apps of the node's tests, one factory per behaviour. No framework: what they do is all there is."""

import asyncio
import time


def _app(context, *, startup=None, shutdown=None, serve=None):
    async def answer(scope, receive, send):
        body = f"{context.app} {context.instance.rpartition('/')[2]} {context.generation}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            if startup is not None:
                await startup()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            if shutdown is not None:
                await shutdown()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await (serve or answer)(scope, receive, send)

    return app


def ready(context):
    """Starts at once and answers who it is."""
    return _app(context)


def raises_in_startup(context):
    async def startup():
        raise RuntimeError("the startup is broken")

    return _app(context, startup=startup)


def raises_in_factory(context):
    raise ValueError("the factory is broken")


class ExitsError(Exception):
    """To show it ends the process."""

    def __str__(self):
        raise SystemExit(3)


def raises_what_exits_when_shown(context):
    raise ExitsError


def hangs_in_startup(context):
    """Never becomes ready."""
    return _app(context, startup=asyncio.Event().wait)


def crashes_when_asked(context):
    """Its lifespan ends with an error after the first request."""
    asked = asyncio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await asked.wait()
            raise RuntimeError("the lifespan is broken")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"as you wish"})
        asked.set()

    return app


def slow_to_stop(context):
    """Takes `config.stop_seconds` to shut down."""

    async def shutdown():
        await asyncio.sleep(float(context.config.get("stop_seconds", 1)))

    return _app(context, shutdown=shutdown)


def never_stops(context):
    """Ignores its shutdown and its cancellation for as long as it can."""

    async def shutdown():
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                if context.config.get("give_in", True):
                    raise

    return _app(context, shutdown=shutdown)


def raises_in_shutdown(context):
    async def shutdown():
        raise RuntimeError("the shutdown is broken")

    return _app(context, shutdown=shutdown)


def leaves_tasks(context):
    """Starts tasks that nobody ends."""

    async def startup():
        context.config.setdefault("tasks", [])
        for _ in range(3):
            context.config["tasks"].append(asyncio.create_task(asyncio.Event().wait()))

    return _app(context, startup=startup)


def slow_requests(context):
    """Answers after `config.seconds`."""

    async def serve(scope, receive, send):
        await asyncio.sleep(float(context.config.get("seconds", 0.2)))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(context.generation).encode()})

    return _app(context, serve=serve)


def holds_requests(context):
    """Answers once the file `go` is in its data directory."""

    async def serve(scope, receive, send):
        while not (context.data_dir / "go").exists():  # noqa: ASYNC110 - a test's file
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"held"})

    return _app(context, serve=serve)


def works_on(context):
    """Answers at once and works until the file `go` is there, as a framework's background task does."""

    async def serve(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"accepted"})
        outcome = "broken off"
        try:
            while not (context.data_dir / "go").exists():  # noqa: ASYNC110 - a test's file
                await asyncio.sleep(0.005)
            outcome = "done"
        finally:
            (context.data_dir / "work").write_text(outcome)

    return _app(context, serve=serve)


def probed(context):
    """Answers its probe with whatever status the file `status` in its data directory holds."""

    async def serve(scope, receive, send):
        file = context.data_dir / "status"
        status = int(file.read_text()) if file.exists() else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return _app(context, serve=serve)


def fails_until_file(context):
    """Raises in its factory until the file `go` is in its data directory."""
    if not (context.data_dir / "go").exists():
        raise RuntimeError("not yet")
    return _app(context)


def blocks_in_factory(context):
    """Holds its thread for `config.seconds`."""
    time.sleep(float(context.config.get("seconds", 1)))
    return _app(context)


def waits_in_factory(context):
    """Holds its thread until the file `go` is in its data directory."""
    while not (context.data_dir / "go").exists():
        time.sleep(0.005)
    return _app(context)


def fails_slowly(context):
    """Raises in its factory, after a while."""
    time.sleep(0.5)
    raise ValueError("the factory is broken")


def counts_starts(context):
    """Adds a letter to the file `starts` in its data directory with each start, which takes a while."""
    with (context.data_dir / "starts").open("a") as file:
        file.write("x")
    time.sleep(0.1)
    return _app(context)


def echoes(context):
    """Sends back what comes in on a WebSocket."""

    async def app(scope, receive, send):
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    return app


def talks(context):
    """Answers who it is, or with the body that it was sent; sends back what comes in on a WebSocket."""
    sockets = echoes(context)

    async def serve(scope, receive, send):
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = body or f"{context.app} {context.instance.rpartition('/')[2]}".encode()
        await send({"type": "http.response.body", "body": body})

    web = _app(context, serve=serve)

    async def app(scope, receive, send):
        await (sockets if scope["type"] == "websocket" else web)(scope, receive, send)

    return app


def cancels_itself(context):
    async def serve(scope, receive, send):
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    return _app(context, serve=serve)


def sends_text(context):
    async def serve(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": "text"})

    return _app(context, serve=serve)


def widens_its_cookie(context):
    async def serve(scope, receive, send):
        headers = [(b"set-cookie", b"session=1; Domain=localhost")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    return _app(context, serve=serve)
