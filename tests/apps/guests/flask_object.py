"""A Flask app as its author runs it: an object, configured by environment variables."""

import os

import ledger
from flask import Flask, request, url_for

app = Flask(__name__)
DATABASE_URL = os.environ["DATABASE_URL"]


@app.get("/notes")
def notes():
    return ledger.texts(DATABASE_URL)


@app.post("/notes")
def add():
    ledger.add(DATABASE_URL, request.get_data(as_text=True))
    return "", 201


@app.get("/about")
def about():
    return {"motto": os.environ.get("MOTTO", ""), "self": url_for("about"), "pid": os.getpid()}
