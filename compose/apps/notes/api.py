"""The JSON side of the notes service, and its health."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, StringConstraints
from sqlmodel import Session

from notes import store

NoteText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class NewNote(BaseModel):
    """A note to add."""

    text: NoteText


class StoredNote(BaseModel):
    """A note as it is stored."""

    id: int
    text: str
    create_time: datetime


def open_session(request: Request) -> Iterator[Session]:
    """Give the handler a session of this instance's database."""
    with Session(request.app.state.engine) as session:
        yield session


OpenSession = Annotated[Session, Depends(open_session)]
router = APIRouter()


@router.get("/healthz")
def healthz(session: OpenSession) -> dict[str, str]:
    """Answer 200 while the database can be read."""
    store.newest(session, limit=1)  # reads the file, which SELECT 1 does not
    return {"status": "ok"}


@router.get("/notes", response_model=list[StoredNote])
def list_notes(
    session: OpenSession, limit: Annotated[int, Query(ge=1, le=200)] = 50, before: int | None = None
) -> list[store.Note]:
    """Return notes, newest first; `before` is the last id of the page before."""
    return store.newest(session, limit, before)


@router.post("/notes", response_model=StoredNote, status_code=201)
def add_note(session: OpenSession, note: NewNote) -> store.Note:
    """Add a note."""
    return store.add(session, note.text)


@router.delete("/notes/{note_id}", status_code=204)
def remove_note(session: OpenSession, note_id: int) -> None:
    """Remove a note."""
    if not store.remove(session, note_id):
        raise HTTPException(404, f"there is no note {note_id}")
