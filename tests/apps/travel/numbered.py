"""Keeps numbered rows in its SQLite database, and answers once a row is on the disk."""

import os
import sqlite3
from contextlib import closing
from urllib.parse import parse_qs


def create_app(context):
    """Return the app: POST /?n=1 writes a row, GET / tells all; config `wal` is the journal's mode."""
    path = context.database_url.removeprefix("sqlite:///")
    with closing(_open(path)) as database:
        database.execute(f"PRAGMA journal_mode = {'wal' if context.config.get('wal', True) else 'delete'}")
        database.execute("CREATE TABLE IF NOT EXISTS row (n INTEGER PRIMARY KEY)")
        padding = int(context.config.get("padding_mib", 0))
        database.execute("CREATE TABLE IF NOT EXISTS padding (block BLOB)")
        (there,) = database.execute("SELECT count(*) FROM padding").fetchone()
        for _ in range(padding - there):
            database.execute("INSERT INTO padding VALUES (?)", (os.urandom(1 << 20),))

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        if scope["method"] == "POST":
            (number,) = parse_qs(scope["query_string"].decode())["n"]
            with closing(_open(path)) as database:
                database.execute("INSERT OR IGNORE INTO row VALUES (?)", (int(number),))
            body = number.encode()
        else:
            with closing(_open(path)) as database:
                body = ",".join(str(n) for (n,) in database.execute("SELECT n FROM row ORDER BY n")).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


def _open(path):
    return sqlite3.connect(path, isolation_level=None, timeout=20)
