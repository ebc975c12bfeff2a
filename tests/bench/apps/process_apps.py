"""Two apps for the benchmark of the PROCESS tier: as small as can be, and a FastAPI one of 20 routes."""

from fastapi import FastAPI
from sqlmodel import Field, SQLModel


async def small(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def fastapi20(context):
    class Item(SQLModel):
        id: int = Field(default=0)
        name: str = ""

    app = FastAPI()
    for number in range(20):

        async def route(item_id: int, q: str | None = None) -> Item:
            return Item(id=item_id, name=q or "")

        app.add_api_route(f"/r{number}/{{item_id}}", route, name=f"r{number}")
    return app


def bare_fastapi20():
    return fastapi20(None)
