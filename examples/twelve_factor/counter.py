"""An app object that was written for any host: it knows `DATABASE_URL`, and nothing of AppSupervisor."""

import os

from flask import Flask
from sqlalchemy import create_engine, text

engine = create_engine(os.environ["DATABASE_URL"])
with engine.begin() as db:
    db.execute(text("CREATE TABLE IF NOT EXISTS visit (id INTEGER PRIMARY KEY)"))

app = Flask(__name__)


@app.get("/")
def visit():
    with engine.begin() as db:
        db.execute(text("INSERT INTO visit DEFAULT VALUES"))
        return {"visits": db.scalar(text("SELECT count(*) FROM visit")), "mode": os.environ.get("MODE", "")}
