"""The page of the notes service: plain HTML and forms, no scripts, nothing from elsewhere."""

import re
from dataclasses import dataclass
from html import escape
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import TypeAdapter, ValidationError

from notes import store
from notes.api import NoteText, OpenSession

DEFAULT_ACCENT = "#2563eb"
SHOWN = 100
_note_text: TypeAdapter[str] = TypeAdapter(NoteText)


@dataclass(frozen=True, slots=True)
class Face:
    """What makes one instance's page its own."""

    title: str
    app: str
    instance: str
    accent: str


def colour(value: object) -> str:
    """Return `value` if it is a colour such as `#2563eb`, else the default: it goes into a style sheet."""
    return value if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value) else DEFAULT_ACCENT


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a posted form, the first value of each."""
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=16)
    return {name: values[0] for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(read_form)]
router = APIRouter(include_in_schema=False)


@router.get("/", response_class=HTMLResponse)
def show(request: Request, session: OpenSession) -> str:
    """Show the newest notes."""
    notes = store.newest(session, SHOWN)
    return render(request.app.state.face, root_of(request), notes)


@router.post("/add")
def add(request: Request, session: OpenSession, form: Form) -> RedirectResponse:
    """Add the note of the form and show the page again."""
    try:
        note = _note_text.validate_python(form.get("text", ""))
    except ValidationError as error:
        raise HTTPException(422, "a note has 1 to 500 characters") from error
    store.add(session, note)
    return RedirectResponse(f"{root_of(request)}/", status_code=303)


@router.post("/remove/{note_id}")
def remove(request: Request, session: OpenSession, note_id: int) -> RedirectResponse:
    """Remove a note and show the page again; one that is gone already is no error."""
    store.remove(session, note_id)
    return RedirectResponse(f"{root_of(request)}/", status_code=303)


def root_of(request: Request) -> str:
    """Return the path under which the host mounts this app, empty at the root of a domain."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def render(face: Face, root: str, notes: list[store.Note]) -> str:
    """Return the page as HTML."""
    rows = "\n".join(_row(root, note) for note in notes)
    body = f"<ul>\n{rows}\n</ul>" if notes else '<p class="empty">Nothing here yet. Write the first note.</p>'
    return _PAGE.format(
        title=escape(face.title),
        app=escape(face.app),
        instance=escape(face.instance),
        accent=face.accent,
        root=escape(root),
        count="1 note" if len(notes) == 1 else f"{len(notes)} notes",
        body=body,
    )


def _row(root: str, note: store.Note) -> str:
    return (
        f"<li><span>{escape(note.text)}</span>"
        f'<time datetime="{note.create_time:%Y-%m-%dT%H:%M:%SZ}">{note.create_time:%d %b, %H:%M}</time>'
        f'<form method="post" action="{escape(root)}/remove/{note.id}">'
        f'<button class="quiet" aria-label="Remove">&times;</button></form></li>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --accent: {accent}; color-scheme: light dark; }}
body {{ font: 17px/1.5 system-ui, sans-serif; max-width: 38rem; margin: 3rem auto; padding: 0 1rem; }}
h1 {{ margin: 0; border-left: .4rem solid var(--accent); padding-left: .8rem; }}
header p {{ margin: .2rem 0 1.6rem 1.2rem; opacity: .7; font-size: .85rem; }}
.write {{ display: flex; gap: .5rem; }}
input {{ flex: 1; font: inherit; padding: .5rem .7rem; border: 1px solid #8886; border-radius: .4rem;
  min-width: 0; }}
button {{ font: inherit; padding: .5rem 1rem; border: 0; border-radius: .4rem; background: var(--accent);
  color: #fff; cursor: pointer; }}
button.quiet {{ background: none; color: inherit; opacity: .5; padding: 0 .4rem; }}
ul {{ list-style: none; padding: 0; }}
li {{ display: flex; gap: .8rem; align-items: baseline; padding: .5rem 0; border-bottom: 1px solid #8883; }}
li span {{ flex: 1; overflow-wrap: anywhere; }}
time, .empty {{ opacity: .6; font-size: .85rem; }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>App <b>{app}</b>, instance <b>{instance}</b>, {count}</p>
</header>
<form class="write" method="post" action="{root}/add">
<input name="text" maxlength="500" required autofocus placeholder="Write a note" aria-label="Note">
<button>Add</button>
</form>
{body}
</body>
</html>
"""
