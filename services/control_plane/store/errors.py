"""Failures of the store: the one that keeps it from opening, and the one a caller may retry."""

from __future__ import annotations

import errno
import sqlite3

from services.rpc.errors import SupervisorError

DISK_FULL = "53100"
"""PostgreSQL's code for it."""


class StoreError(Exception):
    """The catalog cannot be opened, or another program changed it; says what to do about it.

    For whoever starts the control plane: it never becomes an answer to a caller, and never holds
    the database's password.
    """


def unavailable(error: BaseException | None = None) -> SupervisorError:
    """Return what a caller is told when the database cannot be written or read just now, for `error`.

    The write may or may not have happened: a caller that must know repeats it with its request id.
    """
    message = "The catalog's database cannot be used just now; try again."
    if error is not None and _is_of_a_full_disk(error):
        message = "The disk of the catalog's database is full; try again when there is room on it."
    return SupervisorError("STORE_UNAVAILABLE", message, retry_after=1.0)


def _is_of_a_full_disk(error: BaseException) -> bool:
    of_driver = getattr(error, "orig", None) or error
    return (
        getattr(of_driver, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(of_driver, "sqlstate", None) == DISK_FULL
        or getattr(of_driver, "errno", None) == errno.ENOSPC
    )


def told(error: BaseException) -> tuple[str, BaseException | None]:
    """Return what a log is told of a failure: a line, and the failure itself where that says more.

    A database that is away says so in a sentence; ninety lines of its driver's frames add nothing.
    """
    of_driver = getattr(error, "orig", None) or error.__cause__ or error
    line = next(iter(str(of_driver).splitlines()), "") or type(of_driver).__name__
    expected = getattr(error, "orig", None) is not None or isinstance(of_driver, OSError)
    return line, None if expected else error


def busy() -> SupervisorError:
    """Return what a caller is told when too many commands wait."""
    return SupervisorError("SERVER_BUSY", "Too many writes are waiting; try again.", retry_after=0.2)


def shutting_down() -> SupervisorError:
    """Return what a caller is told once the store closes."""
    return SupervisorError("SHUTTING_DOWN", "The control plane is shutting down; try again.", retry_after=1.0)


def leadership_lost(term: int, newest: int) -> SupervisorError:
    """Return what ends the work of a leader that is none any more."""
    return SupervisorError(
        "LEADERSHIP_LOST",
        f"Another control plane leads: this was asked for under term {term}, and {newest} is the newest.",
        metadata={"term": str(term), "newest_term": str(newest)},
    )
