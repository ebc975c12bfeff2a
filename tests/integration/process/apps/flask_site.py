import os

from flask import Flask, request

app = Flask(__name__)
GREETING = os.environ["GREETING"]


@app.post("/greet/<name>")
def greet(name: str) -> str:
    return f"{GREETING} {name} {request.get_data(as_text=True)} {request.script_root}"
