"""What a caller is told of a database that cannot be used."""

import errno
import sqlite3
from contextlib import closing

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from services.control_plane.store.errors import unavailable


def full_sqlite() -> BaseException:
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(sqlite3.OperationalError) as caught:
            database.execute("CREATE TABLE a (b)")
        return OperationalError("CREATE", {}, caught.value)


@pytest.mark.parametrize(
    "error",
    [
        full_sqlite(),
        OperationalError("INSERT", {}, psycopg.errors.DiskFull("could not extend file")),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_full_disk_is_called_by_its_name(error: BaseException) -> None:
    told = unavailable(error)
    assert told.reason == "STORE_UNAVAILABLE"
    assert told.retry_after is not None
    assert told.message == "The disk of the catalog's database is full; try again when there is room on it."


def test_what_else_is_the_matter_is_the_logs_business() -> None:
    told = unavailable(OperationalError("SELECT", {}, psycopg.OperationalError("connection refused")))
    assert told.message == "The catalog's database cannot be used just now; try again."
