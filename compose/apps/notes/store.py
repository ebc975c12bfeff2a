"""The notes as rows: the table, the engine, and the four things done with them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, event
from sqlmodel import Field, Session, SQLModel, col, create_engine, delete, select


class Note(SQLModel, table=True):
    """One note."""

    id: int | None = Field(default=None, primary_key=True)
    text: str = Field(max_length=500)
    create_time: datetime = Field(default_factory=lambda: datetime.now(UTC))


def open_engine(url: str) -> Engine:
    """Return an engine for `url`; nothing is connected yet."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _tune_sqlite)
    return engine


def _tune_sqlite(connection: Any, _record: object) -> None:
    # Readers go on while one handler writes, and two writers wait for each other instead of failing.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA busy_timeout = 5000")


def create_tables(engine: Engine) -> None:
    """Create the table where it is missing."""
    SQLModel.metadata.create_all(engine, tables=[Note.metadata.tables["note"]])


def newest(session: Session, limit: int, before: int | None = None) -> list[Note]:
    """Return at most `limit` notes, newest first, those older than the note `before`."""
    query = select(Note).order_by(col(Note.id).desc()).limit(limit)
    if before is not None:
        query = query.where(col(Note.id) < before)
    return list(session.exec(query))


def add(session: Session, text: str) -> Note:
    """Store a note and return it with its id."""
    note = Note(text=text)
    session.add(note)
    session.commit()
    session.refresh(note)
    return note


def remove(session: Session, note_id: int) -> bool:
    """Remove a note; return whether it was there."""
    removed = session.exec(delete(Note).where(col(Note.id) == note_id)).rowcount > 0
    session.commit()
    return removed
