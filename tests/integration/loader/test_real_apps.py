"""Real apps of the usual frameworks, served through the loader."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime_node.context import AppContext
from runtime_node.loader import Loader
from tests.eventually import WITHIN, eventually


@pytest.fixture
def web(apps: Path) -> Iterator[Loader]:
    loader = Loader([apps / "web"])
    yield loader
    loader.close()


async def test_two_instances_of_one_fastapi_factory_have_their_own_data(served: Any, web: Loader) -> None:
    async with (
        served(web, "notes_api:create_app", app="one") as one,
        served(web, "notes_api:create_app", app="two") as two,
    ):
        assert (await one.post("/notes", json={"text": "mine"})).status_code == 201
        assert [note["text"] for note in (await one.get("/notes")).json()] == ["mine"]
        assert (await two.get("/notes")).json() == []


async def test_apps_on_sqlmodel_in_two_locations_do_not_see_each_others_tables(
    served: Any, web: Loader, apps: Path
) -> None:
    shop = Loader([apps / "twin_a"])
    async with (
        served(shop, "shop.web:create_app", app="shop"),
        served(web, "notes_api:create_app", app="notes") as notes,
    ):
        assert (await notes.get("/tables")).json() == ["note"]
    shop.close()


@pytest.mark.parametrize("entrypoint", ["starlette_site:app", "starlette_site:create_app"])
async def test_starlette_serves(served: Any, web: Loader, entrypoint: str) -> None:
    async with served(web, entrypoint) as client:
        assert (await client.get("/")).text == "hello from starlette"


async def test_litestar_serves_and_uses_the_instances_threads(served: Any, web: Loader) -> None:
    async with served(web, "litestar_site:app") as client:
        assert (await client.get("/")).text == "hello from litestar"
        assert (await client.get("/sync")).text == "hello from a thread"


@pytest.mark.parametrize("entrypoint", ["flask_site:app", "flask_site:create_app"])
async def test_flask_serves(served: Any, web: Loader, entrypoint: str) -> None:
    async with served(web, entrypoint) as client:
        assert (await client.get("/")).text == "hello from flask"
        assert (await client.post("/echo", content=b"x" * 300_000)).content == b"x" * 300_000

        async def pieces() -> AsyncIterator[bytes]:
            yield b"in "
            yield b"pieces"

        assert (await client.post("/echo", content=pieces())).content == b"in pieces"


@pytest.mark.parametrize("length", [[], [(b"content-length", b"10")]])
async def test_a_body_that_breaks_off_is_not_taken_as_complete_by_wsgi(
    tmp_path: Path, make_context: Callable[..., AppContext], length: list[tuple[bytes, bytes]]
) -> None:
    (tmp_path / "upload.py").write_text(
        "def create_app(context):\n"
        "    def app(environ, start_response):\n"
        "        context.config['body'] = environ['wsgi.input'].read()\n"
        "        start_response('200 OK', [])\n"
        "        return [b'stored']\n"
        "    return app\n"
    )
    loader = Loader([tmp_path])
    code = await asyncio.to_thread(loader.load, "upload:create_app")
    context = make_context(config={})
    asgi = await code.build(context, threads=1)
    events = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(events)

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/", "query_string": b"",
        "headers": length,
    }  # fmt: skip
    with pytest.raises(ConnectionError, match="left"):
        await asgi(scope, receive, send)
    assert "body" not in context.config
    await asyncio.to_thread(code.release)
    loader.close()


async def test_a_header_that_could_forge_another_is_dropped_for_wsgi(served: Any, web: Loader) -> None:
    async with served(web, "flask_site:app") as client:
        answer = await client.get(
            "/path", headers=[("x-forwarded-user", "real"), ("x_forwarded_user", "forged")]
        )
        assert answer.json()["headers"].count("X-Forwarded-User") == 1
        answer = await client.get("/path", headers=[("x_forwarded_user", "forged")])
        assert "X-Forwarded-User" not in answer.json()["headers"]


async def test_a_wsgi_request_that_is_cut_off_frees_its_thread(
    tmp_path: Path, make_context: Callable[..., AppContext]
) -> None:
    (tmp_path / "flood.py").write_text(
        "ended = []\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    try:\n"
        "        while True:\n"
        "            yield b'x' * 1000\n"
        "    finally:\n"
        "        ended.append(1)\n"
        "def wsgi(environ, start_response):\n"
        "    return app(environ, start_response)\n"
        "def create_app(context):\n"
        "    context.config['ended'] = ended\n"
        "    return wsgi\n"
    )
    loader = Loader([tmp_path])
    code = await asyncio.to_thread(loader.load, "flood:create_app")
    context = make_context(config={})
    asgi = await code.build(context, threads=1)
    ended: list[int] = context.config["ended"]
    blocked = asyncio.Event()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            blocked.set()
            await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "http_version": "1.1",
        "headers": [],
    }
    for number in (1, 2):
        request = asyncio.create_task(asgi(scope, receive, send))  # type: ignore[arg-type]
        await asyncio.wait_for(blocked.wait(), WITHIN)
        blocked.clear()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await eventually(lambda number=number: len(ended) >= number)
    assert await asyncio.to_thread(code.release) == []


@pytest.mark.parametrize("protocol", ["wsgi", "asgi"])
def test_a_django_project_runs_in_a_process_of_its_own(apps: Path, tmp_path: Path, protocol: str) -> None:
    program = textwrap.dedent("""
        import asyncio, logging, sys
        from pathlib import Path
        import httpx
        from runtime_node.context import AppContext
        from runtime_node.loader import Loader
        async def main():
            loader = Loader([Path(sys.argv[1])], plain=True)
            assert loader.kind_of(sys.argv[2]) == "app"
            code = loader.load(sys.argv[2])
            log = logging.getLogger()
            context = AppContext("d", "apps/d/instances/1", 1, {}, {}, {}, None, Path("."), log)
            app = await code.build(context, threads=2)
            from django.core.management import call_command
            await asyncio.to_thread(call_command, "migrate", verbosity=0)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://d.localhost") as client:
                await client.post("/posts", content="first")
                print(code.protocol, (await client.get("/posts")).text)
        asyncio.run(main())
    """)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program, str(apps / "django_project"), f"mysite.{protocol}:application"],
        env={
            **os.environ,
            "PYTHONPATH": f"{root}:{root / 'gen'}",
            "DATABASE_URL": f"sqlite:///{tmp_path}/django.db",
        },
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{protocol} {{"posts": ["first"]}}\n'


async def test_start_and_stop_leave_no_thread_task_or_memory(
    web: Loader, make_context: Callable[..., AppContext]
) -> None:
    async def cycle(number: int) -> bool:
        code = await asyncio.to_thread(web.load, "twenty_routes:create_app")
        asgi = await code.build(make_context(instance=f"apps/demo/instances/{number}"), threads=4)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://test") as client:
            assert (await client.put("/cups/x", json={"name": "x"})).status_code == 200
            assert (await client.delete("/cups/x")).json() == {"gone": True}
        del asgi
        assert await asyncio.to_thread(code.release) == []
        return not code.suspects

    await cycle(0)
    threads, tasks = threads_of_apps(), len(asyncio.all_tasks())
    freed = sum([await cycle(number) for number in range(1, 16)])
    assert freed >= 13
    assert threads_of_apps() <= threads + 1
    assert len(asyncio.all_tasks()) == tasks


def threads_of_apps() -> int:
    """Return how many threads there are beside those of `asyncio.to_thread`, which come as they are used."""
    return sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())


async def test_what_holds_a_stopped_app_is_named(
    tmp_path: Path, make_context: Callable[..., AppContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the heap of a whole test run the search takes longer than a node would give it.
    monkeypatch.setattr("runtime_node.loader.code._NAMING_SECONDS", 10.0)
    (tmp_path / "leaky.py").write_text(
        "from starlette.applications import Starlette\n"
        "keep = []\n"
        "def create_app(context):\n"
        "    app = Starlette()\n"
        "    keep.append(app)\n"
        "    return app\n"
    )
    code = Loader([tmp_path]).load("leaky:create_app")
    await code.build(make_context(), threads=1)
    leaks = await asyncio.to_thread(code.release)
    assert leaks == ["the app object is still in memory: leaky.keep holds it"]
    assert len(code.suspects) == 1
