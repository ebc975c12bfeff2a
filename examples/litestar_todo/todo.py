"""A to-do list: Litestar, with its tasks in a file of the instance's own."""

import json

from litestar import Litestar, get, post


def create_app(context):
    path = context.data_dir / "todo.json"

    def read() -> list[str]:
        return json.loads(path.read_text()) if path.exists() else []

    @get("/", sync_to_thread=True)
    def tasks() -> list[str]:
        return read()

    @post("/", sync_to_thread=True)
    def add(data: dict[str, str]) -> list[str]:
        done = [*read(), data["task"]]
        path.write_text(json.dumps(done))
        return done

    return Litestar([tasks, add])
