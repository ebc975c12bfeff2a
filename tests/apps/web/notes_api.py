"""A notes service on FastAPI and SQLModel; the factory uses the database it is given."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from sqlmodel import Field, Session, SQLModel, create_engine, select


class Note(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    text: str


def _session(request: Request) -> Any:
    with Session(request.app.state.engine) as session:
        yield session


Database = Annotated[Session, Depends(_session)]


def create_app(context: Any) -> FastAPI:
    engine = create_engine(context.database_url, connect_args={"check_same_thread": False})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        SQLModel.metadata.create_all(engine)
        app.state.engine = engine
        yield
        engine.dispose()

    app = FastAPI(title=context.config.get("title", "Notes"), lifespan=lifespan)

    @app.post("/notes", status_code=201)
    def add(note: Note, database: Database) -> Note:
        database.add(note)
        database.commit()
        database.refresh(note)
        return note

    @app.get("/notes")
    def notes(database: Database) -> list[Note]:
        return list(database.exec(select(Note)).all())

    @app.get("/tables")
    async def tables() -> list[str]:
        return sorted(SQLModel.metadata.tables)

    return app
