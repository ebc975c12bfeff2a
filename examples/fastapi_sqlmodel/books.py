"""A shelf of books: FastAPI, SQLModel, and a database of the instance's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from sqlmodel import Field, Session, SQLModel, create_engine, select


class Book(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    title: str


def create_app(context):
    engine = create_engine(context.database_url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        SQLModel.metadata.create_all(engine, tables=[Book.__table__])
        yield
        engine.dispose()

    app = FastAPI(title=context.config.get("title", context.app), lifespan=lifespan)

    @app.get("/healthz")
    def healthz() -> str:
        return "ok"

    # Plain `def`: FastAPI runs these on worker threads, so the database never holds up the event loop.
    @app.post("/books", status_code=201)
    def add(book: Book) -> Book:
        with Session(engine) as session:
            session.add(book)
            session.commit()
            session.refresh(book)
            return book

    @app.get("/books")
    def books() -> list[Book]:
        with Session(engine) as session:
            return list(session.exec(select(Book)))

    @app.get("/books/{number}")
    def book(number: int) -> Book:
        with Session(engine) as session:
            found = session.get(Book, number)
            if found is None:
                raise HTTPException(404)
            return found

    return app
