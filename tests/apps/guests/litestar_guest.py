"""A Litestar app made by a factory."""

import asyncio
import os

import ledger
from litestar import Litestar, Request, get, post


def create_app(context):
    @get("/notes")
    async def notes() -> list[str]:
        return await asyncio.to_thread(ledger.texts, context.database_url)

    @post("/notes")
    async def add(request: Request) -> None:
        await asyncio.to_thread(ledger.add, context.database_url, (await request.body()).decode())

    @get("/about", name="about", sync_to_thread=True)
    def about(request: Request) -> dict[str, str | int]:
        path = request.url_for("about").removeprefix(str(request.base_url).rstrip("/"))
        root = request.scope.get("root_path", "")
        return {"motto": context.env.get("MOTTO", ""), "self": root + path, "pid": os.getpid()}

    return Litestar([notes, add, about])
