"""A guest book: Flask by a factory. Synchronous code runs on worker threads that are the instance's own."""

import sqlite3
from contextlib import closing

from flask import Flask, request


def create_app(context):
    app = Flask(__name__)
    path = context.data_dir / "guests.db"

    def database():
        return closing(sqlite3.connect(path, isolation_level=None))

    with database() as db:
        db.execute("CREATE TABLE IF NOT EXISTS guest (name TEXT)")

    @app.get("/")
    def guests():
        with database() as db:
            return {"guests": [name for (name,) in db.execute("SELECT name FROM guest")]}

    @app.post("/")
    def sign():
        with database() as db:
            db.execute("INSERT INTO guest VALUES (?)", (request.form["name"],))
        return guests()

    return app
