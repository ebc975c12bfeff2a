"""A FastAPI factory of ordinary size: twenty routes, models, dependencies, sync and async handlers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel


class Thing(BaseModel):
    name: str
    size: int = 0
    tags: list[str] = []


def page(limit: int = 10, offset: int = 0) -> tuple[int, int]:
    return limit, offset


Page = Annotated[tuple[int, int], Depends(page)]


def create_app(context: Any) -> FastAPI:
    app = FastAPI(title=context.app)
    things: dict[str, Thing] = {}
    for kind in ("books", "cups", "hats", "pens", "toys"):
        router = APIRouter(prefix=f"/{kind}")

        @router.get("")
        async def listing(page: Page) -> list[Thing]:
            return list(things.values())[page[1] : page[1] + page[0]]

        @router.get("/{name}")
        async def get(name: str) -> Thing | None:
            return things.get(name)

        @router.put("/{name}")
        async def put(name: str, thing: Thing) -> Thing:
            things[name] = thing
            return thing

        @router.delete("/{name}")
        def delete(name: str) -> dict[str, bool]:
            return {"gone": things.pop(name, None) is not None}

        app.include_router(router)
    return app
