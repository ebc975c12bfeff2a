"""Imported by the zygote: builds one small app with the usual framework, so that what frameworks import or
compile at first use is done once, in memory that all guests share.
"""

from __future__ import annotations


def warm_up() -> None:
    """Build and drop a FastAPI app with a model; does nothing where FastAPI is not installed."""
    try:
        from fastapi import Depends, FastAPI  # noqa: PLC0415  (optional)
        from pydantic import BaseModel  # noqa: PLC0415
    except ImportError:
        return

    class Item(BaseModel):
        name: str
        tags: list[str] = []

    def page(limit: int = 10) -> int:
        return limit

    def list_items(limit: int = Depends(page)) -> list[Item]:
        return [Item(name=str(limit))]

    async def put_item(item_id: int, item: Item, note: str | None = None) -> Item:
        return item

    # FastAPI resolves annotations in module scope, where a model of this function is not found.
    put_item.__annotations__ = {"item_id": int, "item": Item, "note": str | None, "return": Item}
    list_items.__annotations__ = {"limit": int, "return": list[Item]}
    app = FastAPI()
    app.add_api_route("/items", list_items, methods=["GET"])
    app.add_api_route("/items/{item_id}", put_item, methods=["PUT"])
    app.openapi()


warm_up()
