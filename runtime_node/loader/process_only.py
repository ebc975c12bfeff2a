"""Packages that keep one state per process, or make the whole process theirs, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

PROCESS_ONLY: Mapping[str, str] = {
    "django": "Django keeps its settings and its registry of models once per process",
    "gevent": "gevent replaces parts of the standard library for the whole process",
    "eventlet": "eventlet replaces parts of the standard library for the whole process",
    "nest_asyncio": "nest_asyncio replaces parts of asyncio for the whole process",
    "nicegui": "NiceGUI keeps its pages, its clients and its server once per process",
    "gradio": "Gradio keeps the blocks that are being built and its settings once per process",
    "blacksheep": "BlackSheep keeps its routes and its services once per process",
    "dash": "Dash keeps its callbacks and its pages once per process",
    "mongoengine": "MongoEngine keeps its connections once per process",
}


class IsolationUnsupportedError(ImportError):
    """Code that cannot share a process. An ImportError, so that an optional import may fail."""


def refusal_of(top: str) -> IsolationUnsupportedError | None:
    """Return why the top-level package `top` cannot be imported where apps share a process, if it cannot."""
    reason = PROCESS_ONLY.get(top)
    return None if reason is None else IsolationUnsupportedError(reason, name=top)
