"""A FastAPI app as its author runs it: an object, SQLModel, `DATABASE_URL`, sync and async handlers."""

import os
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, FastAPI, Request
from sqlmodel import Field, Session, SQLModel, create_engine, select

engine = create_engine(os.environ["DATABASE_URL"])


class Note(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    text: str


@asynccontextmanager
async def lifespan(app):
    SQLModel.metadata.create_all(engine)
    yield
    engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/notes")
def notes() -> list[str]:
    with Session(engine) as session:
        return [note.text for note in session.exec(select(Note))]


@app.post("/notes", status_code=201)
def add(text: Annotated[str, Body(media_type="text/plain")]) -> None:
    with Session(engine) as session:
        session.add(Note(text=text))
        session.commit()


@app.get("/about")
async def about(request: Request) -> dict[str, str | int]:
    path = request.url_for("about").path
    return {"motto": os.environ.get("MOTTO", ""), "self": path, "pid": os.getpid()}
