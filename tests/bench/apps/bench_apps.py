"""Apps to measure hosting with: a small one and a FastAPI one of 20 routes, each with a new database."""

import os
import sqlite3

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
