"""Notes in the SQLite database that a URL names; what the guests of the tests keep their data in."""

import sqlite3
from contextlib import closing


def _open(url):
    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    database.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT)")
    return database


def add(url, text):
    with closing(_open(url)) as database, database:
        database.execute("INSERT INTO note (text) VALUES (?)", (text,))


def texts(url):
    with closing(_open(url)) as database:
        return [text for (text,) in database.execute("SELECT text FROM note ORDER BY id")]
