"""Keeps numbered rows in its database, if it has one, and says of each answer which copy gave it and when.

POST /?n=1 writes a row and answers once it is committed; GET / tells all rows, as `1-5,7`. Nothing keeps a
number from being there twice: whoever sends a request again is found out.
"""

import contextlib
import json
import os
import sqlite3
import threading
import time
from urllib.parse import parse_qs

import psycopg


def create_app(context):
    """Return the app; WSGI, so that a database that does not answer keeps nothing but its own request."""
    epoch = int(context.instance.rpartition("-e")[2])
    time.sleep(float(context.config.get("start_seconds", 0)))
    url = context.database_url or ""
    rows = None
    if url.startswith("sqlite:///"):
        rows = Sqlite(url.removeprefix("sqlite:///"), int(context.config.get("padding_mib", 0)))
    elif url:
        rows = Postgres(url)

    def app(environ, start_response):
        if environ["REQUEST_METHOD"] == "POST":
            (number,) = parse_qs(environ["QUERY_STRING"])["n"]
            told = int(number)
            print("row", number)  # into its log, which is on the disk as well
            if rows is not None:
                rows.write("INSERT INTO row (n, epoch) VALUES (?, ?)", (told, epoch))
        elif environ["PATH_INFO"] == "/history":
            told = rows.read("SELECT epoch, n FROM row ORDER BY id")
        else:
            told = ranges(n for (n,) in rows.read("SELECT n FROM row ORDER BY n")) if rows is not None else ""
        body = json.dumps({"epoch": epoch, "at": time.clock_gettime(time.CLOCK_BOOTTIME), "told": told})
        start_response("200 OK", [("content-type", "application/json")])
        return [body.encode()]

    return app


def ranges(numbers):
    """Return sorted numbers as `1-5,7`; one that is there twice is told twice."""
    parts = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" for first, last in parts)


class Sqlite:
    def __init__(self, path, padding_mib):
        self._path = path
        with self._open() as database:
            database.execute("PRAGMA journal_mode = wal")
            database.execute(
                "CREATE TABLE IF NOT EXISTS row"
                " (id INTEGER PRIMARY KEY AUTOINCREMENT, n INTEGER, epoch INTEGER)"
            )
            database.execute("CREATE TABLE IF NOT EXISTS padding (block BLOB)")
            (there,) = database.execute("SELECT count(*) FROM padding").fetchone()
            for _ in range(padding_mib - there):
                database.execute("INSERT INTO padding VALUES (?)", (os.urandom(1 << 20),))

    @contextlib.contextmanager
    def _open(self):
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None, timeout=5)) as database:
            yield database

    def write(self, statement, values):
        with self._open() as database:
            database.execute(statement, values)

    def read(self, statement):
        with self._open() as database:
            return database.execute(statement).fetchall()


class Postgres:
    """Keeps its connections, as a pool does, and closes one that has failed."""

    def __init__(self, url):
        self._url = url
        self._free = []
        self._lock = threading.Lock()
        # Of several copies that begin at once one makes the table.
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            self.write(
                "CREATE TABLE IF NOT EXISTS row"
                " (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, epoch int)"
            )

    @contextlib.contextmanager
    def _connection(self):
        with self._lock:
            connection = self._free.pop() if self._free else None
        if connection is None:
            connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=2,
                tcp_user_timeout=2000,
                options="-c lock_timeout=2s",
            )
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._free.append(connection)

    def write(self, statement, values=()):
        with self._connection() as connection:
            connection.execute(statement.replace("?", "%s"), values)

    def read(self, statement):
        with self._connection() as connection:
            return connection.execute(statement).fetchall()
