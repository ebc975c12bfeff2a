"""A small notes service: an ordinary FastAPI app on the database it is given.

`create_app(context)` is all it knows of its host; two instances share this code and nothing else.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI

from notes import api, pages, store

__all__ = ["create_app"]


class Context(Protocol):
    """What the host tells an instance; the part of it that this app uses."""

    @property
    def app(self) -> str:
        """Id of the app."""
        ...

    @property
    def instance(self) -> str:
        """Resource name of the instance."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """`title` and `accent` (a colour such as `#2563eb`), both optional."""
        ...

    @property
    def database_url(self) -> str | None:
        """SQLAlchemy URL of the app's own database."""
        ...


def create_app(context: Context) -> FastAPI:
    """Return the notes service of one instance. Raises ValueError without a database."""
    if context.database_url is None:
        raise ValueError("notes keeps its data in a database: give the app one")
    engine = store.open_engine(context.database_url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The event loop may be shared with other apps: nothing that waits for a disk runs on it.
        await asyncio.to_thread(store.create_tables, engine)
        try:
            yield
        finally:
            await asyncio.to_thread(engine.dispose)

    title = str(context.config.get("title") or f"Notes of {context.app}")
    # The interactive documentation would load scripts from elsewhere; /openapi.json tells the same.
    app = FastAPI(title=title, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.engine = engine
    app.state.face = pages.Face(
        title=title,
        app=context.app,
        instance=context.instance.rpartition("/")[2],
        accent=pages.colour(context.config.get("accent")),
    )
    app.include_router(api.router)
    app.include_router(pages.router)
    return app
