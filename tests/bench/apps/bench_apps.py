"""Apps to measure hosting with: a small one and a FastAPI one of 20 routes, each with a new database."""

import ctypes
import os
import sqlite3
import time

from fastapi import FastAPI
from sqlmodel import Field, Session, SQLModel, create_engine, select


def small(context):
    """Answer from the one row of a SQLite database made at the start; the least that is still an app."""
    return _small(context.database_url)


def _small(url):
    path = url.removeprefix("sqlite:///")

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                if message["type"] == "lifespan.startup":
                    with sqlite3.connect(path) as database:
                        database.execute("CREATE TABLE IF NOT EXISTS visit (number INTEGER)")
                    database.close()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


class Item(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = ""


def fastapi20(context):
    """A FastAPI app of 20 routes over SQLModel on its own database."""
    return _fastapi20(context.database_url)


def _fastapi20(url):
    app = FastAPI()
    engine = create_engine(url, connect_args={"check_same_thread": False})
    SQLModel.metadata.create_all(engine)

    @app.get("/")
    async def root() -> dict[str, str]:
        return {"status": "ok"}

    for number in range(19):

        def items(limit: int = 10) -> list[Item]:
            with Session(engine) as session:
                return list(session.exec(select(Item).limit(limit)))

        app.add_api_route(f"/items{number}", items, name=f"items{number}")
    return app


def bare_small():
    return _small(os.environ["DATABASE_URL"])


def bare_fastapi20():
    return _fastapi20(os.environ["DATABASE_URL"])


def counted(context):
    """Answer how often it was started, which its database remembers."""
    path = context.database_url.removeprefix("sqlite:///")
    count = 0

    async def app(scope, receive, send):
        nonlocal count
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                if message["type"] == "lifespan.startup":
                    with sqlite3.connect(path) as database:
                        database.execute("CREATE TABLE IF NOT EXISTS start (number INTEGER)")
                        database.execute("INSERT INTO start VALUES (1)")
                        [(count,)] = database.execute("SELECT count(*) FROM start")
                    database.close()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body = str(count).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def hostile(context):
    """Do on request what no neighbour should feel."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        kind, _, amount = scope["path"].strip("/").partition("/")
        if kind == "segfault":
            ctypes.string_at(0)
        elif kind == "memory":
            kept = []
            while True:
                kept.append(bytearray(os.urandom(4096)) * 2048)
        elif kind == "hold":  # asleep in C, with the interpreter's lock
            ctypes.PyDLL(None).usleep(int(amount) * 1000)
        elif kind == "burn":  # at work in C, with the interpreter's lock
            began = time.perf_counter()
            sum(range(10_000_000))
            sum(range(int(10_000_000 * int(amount) / 1000 / (time.perf_counter() - began))))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


def rows(context):
    """Add a row to its PostgreSQL database for each request, on a connection of its own."""
    import psycopg  # the other apps do without it

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                if message["type"] == "lifespan.startup":
                    async with await psycopg.AsyncConnection.connect(context.database_url) as database:
                        await database.execute("CREATE TABLE IF NOT EXISTS visit (number INTEGER)")
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        async with await psycopg.AsyncConnection.connect(context.database_url) as database:
            await database.execute("INSERT INTO visit VALUES (1)")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    return app
