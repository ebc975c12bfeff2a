"""Imported by the zygote: builds and uses small apps with the usual frameworks, so that what those import or
compile at first use is done once, in memory that all guests share.
"""

from __future__ import annotations

import asyncio
from typing import Any


def warm_up() -> None:
    """Use FastAPI and SQLModel once, as far as they are installed; leaves no thread, file or table."""
    for use in (_use_fastapi, _use_sqlmodel):
        try:
            use()
        except ImportError:  # both are optional
            continue


def _use_fastapi() -> None:
    from fastapi import Depends, FastAPI  # noqa: PLC0415
    from pydantic import BaseModel  # noqa: PLC0415

    class Item(BaseModel):
        name: str
        tags: list[str] = []

    def page(limit: int = 10) -> int:
        return limit

    async def list_items(limit: int = Depends(page)) -> list[Item]:
        return [Item(name=str(limit))]

    async def put_item(item_id: int, item: Item, note: str | None = None) -> Item:
        return item

    async def only_page(limit: int = 10) -> list[Item]:
        return [Item(name=str(limit))]

    # FastAPI resolves annotations in module scope, where a model of this function is not found.
    put_item.__annotations__ = {"item_id": int, "item": Item, "note": str | None, "return": Item}
    list_items.__annotations__ = {"limit": int, "return": list[Item]}
    only_page.__annotations__ = {"limit": int, "return": list[Item]}
    app = FastAPI()
    app.add_api_route("/items", list_items, methods=["GET"])
    app.add_api_route("/page", only_page, methods=["GET"])
    app.add_api_route("/items/{item_id}", put_item, methods=["PUT"])
    app.openapi()
    asyncio.run(_ask(app))


async def _ask(app: Any) -> None:
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": "/page",
        "raw_path": b"/page", "query_string": b"limit=3", "root_path": "", "scheme": "http", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        pass

    await app(scope, receive, send)


def _use_sqlmodel() -> None:
    from sqlalchemy.orm import registry  # noqa: PLC0415
    from sqlmodel import Field, Session, SQLModel, create_engine, select  # noqa: PLC0415

    own = registry()

    class Base(SQLModel, registry=own):
        """Has a registry of its own: the common one belongs to the apps."""

    class Row(Base, table=True):
        id: int | None = Field(default=None, primary_key=True)
        name: str = ""

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Row(name="x"))
        session.commit()
        session.exec(select(Row).limit(1)).all()
    engine.dispose()
    own.dispose()


warm_up()
