"""A Flask app made by a factory, to share a process."""

import os

import ledger
from flask import Flask, request, url_for


def create_app(context):
    app = Flask(__name__)

    @app.get("/notes")
    def notes():
        return ledger.texts(context.database_url)

    @app.post("/notes")
    def add():
        ledger.add(context.database_url, request.get_data(as_text=True))
        return "", 201

    @app.get("/about")
    def about():
        return {"motto": context.env.get("MOTTO", ""), "self": url_for("about"), "pid": os.getpid()}

    return app
