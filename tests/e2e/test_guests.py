"""Real web apps as guests: created, addressed, kept apart, updated and deleted through the control plane.

Frameworks whose apps are ours, in the tier that each fits, and apps that others have published.
"""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from tests.e2e.stack import DEADLINE, ROOT, Stack
from tests.e2e.traffic import ask, data_dir, delete, update, websocket

SHARED, THREAD, PROCESS = InstanceSpec.SHARED, InstanceSpec.THREAD, InstanceSpec.PROCESS
DJANGO = ROOT / "tests/apps/django_project"


def migrate(stack: Stack, app: catalog.App) -> None:
    """Run the project's migrations, as an administrator does with a twelve-factor app."""
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--settings", "mysite.settings", "--verbosity", "0"],
        env={
            **os.environ,
            "PYTHONPATH": str(DJANGO),
            "DATABASE_URL": f"sqlite:///{data_dir(stack, app)}/app.db",
        },
        check=True,
        timeout=100,
    )


@dataclass(frozen=True)
class Guest:
    """A web app that keeps notes, and the tier that it ends up in."""

    entrypoint: str
    runs_in: InstanceSpec.IsolationTier.ValueType
    asks_for: InstanceSpec.IsolationTier.ValueType = InstanceSpec.ISOLATION_TIER_UNSPECIFIED
    prepare: Callable[[Stack, catalog.App], None] = field(default=lambda stack, app: None)


GUESTS = {
    "django-wsgi": Guest("mysite.wsgi:application", PROCESS, prepare=migrate),
    "django-asgi": Guest("mysite.asgi:application", PROCESS, prepare=migrate),
    "flask-object": Guest("flask_object:app", PROCESS),
    "flask-factory": Guest("flask_factory:create_app", SHARED),
    "fastapi-object": Guest("fastapi_object:app", PROCESS),
    "fastapi-factory": Guest("fastapi_factory:create_app", SHARED),
    "starlette": Guest("starlette_chat:create_app", SHARED),
    "litestar-shared": Guest("litestar_guest:create_app", SHARED),
    "litestar-thread": Guest("litestar_guest:create_app", THREAD, asks_for=THREAD),
}


@pytest.mark.parametrize("kind", GUESTS)
def test_a_guest_lives_its_whole_life(guest_stack: Stack, kind: str) -> None:
    stack, guest = guest_stack, GUESTS[kind]
    ids = (f"{kind}-a", f"{kind}-b")
    fields: dict[str, Any] = {"env": {"MOTTO": "one"}, "isolation": guest.asks_for}
    apps = [stack.create(app_id, guest.entrypoint, **fields) for app_id in ids]
    for app in apps:
        assert app.state == Instance.RUNNING
        assert app.instances[0].isolation == guest.runs_in
        guest.prepare(stack, app)
    for app_id in ids:
        by_host, by_path = ask(stack, app_id, "/about"), ask(stack, app_id, "/about", by="path")
        assert (by_host.json()["motto"], by_path.json()["motto"]) == ("one", "one")
        assert by_host.json()["self"] == "/about"
        assert by_path.json()["self"] == f"/apps/{app_id}/about", "its links lead back to it"
        own_process = by_host.json()["pid"] != stack.node_pid()
        assert own_process == (guest.runs_in == PROCESS)

    ways: tuple[Literal["host", "path"], ...] = ("host", "path")
    for app_id, by in zip(ids, ways, strict=True):
        assert ask(stack, app_id, "/notes", "POST", f"of {app_id}", by=by).status == 201
        assert ask(stack, app_id, "/notes", "POST", "ünïcode", by=by).status == 201
    for app_id in ids:
        assert ask(stack, app_id, "/notes").json() == [f"of {app_id}", "ünïcode"]

    assert update(stack, ids[0], env={"MOTTO": "two"}).generation == 2
    assert [ask(stack, app_id, "/about").json()["motto"] for app_id in ids] == ["two", "one"]
    assert ask(stack, ids[0], "/notes").json() == [f"of {ids[0]}", "ünïcode"]
    for app in apps:
        assert data_dir(stack, app).is_dir()
        delete(stack, app.name.removeprefix("apps/"))
        assert not data_dir(stack, app).exists()
    for app_id in ids:
        gone = ask(stack, app_id, "/about")
        assert (gone.status, gone.reason) == (404, "APP_NOT_FOUND")


@pytest.mark.parametrize("tier", [SHARED, THREAD, PROCESS], ids=InstanceSpec.IsolationTier.Name)
def test_websockets_of_two_apps_hear_nothing_of_each_other(
    guest_stack: Stack, tier: InstanceSpec.IsolationTier.ValueType
) -> None:
    stack = guest_stack
    ids = [f"chat-{InstanceSpec.IsolationTier.Name(tier).lower()}-{letter}" for letter in "ab"]
    for app_id in ids:
        stack.create(app_id, "starlette_chat:create_app", isolation=tier)
    with (
        websocket(stack, ids[0], "/room") as ann,
        websocket(stack, ids[0], "/room", by="path") as bob,
        websocket(stack, ids[1], "/room") as eve,
    ):
        ann.send("hello bob")
        assert (ann.recv(DEADLINE), bob.recv(DEADLINE)) == ("hello bob", "hello bob")
        eve.send("hello myself")
        assert eve.recv(DEADLINE) == "hello myself", "and nothing came before it"
        assert ask(stack, ids[0], "/notes", "POST", "from outside").status == 201
        assert bob.recv(DEADLINE) == "from outside"
    assert ask(stack, ids[0], "/notes").json() == ["hello bob", "from outside"]
    assert ask(stack, ids[1], "/notes").json() == ["hello myself"]
    for app_id in ids:
        delete(stack, app_id)


# --- apps that others have published ---


def test_datasette_serves_the_database_of_each_app(guest_stack: Stack) -> None:
    """It knows no root path: under /apps/{app}/ it must be told its base_url, and then lives there alone.

    Its writer threads never end: where they share the node's process each stop tells of one left behind.
    """
    stack = guest_stack
    base_url = {"base_url": "/apps/tables-b/"}
    tables_a = stack.create("tables-a", "datasette_guest:create_app", env={"MOTTO": "Tables of A"})
    tables_b = stack.create(
        "tables-b",
        "datasette_guest:create_app",
        isolation=PROCESS,
        env={"MOTTO": "Tables of B"},
        config=base_url,
    )
    assert [app.instances[0].isolation for app in (tables_a, tables_b)] == [SHARED, PROCESS]
    for app in (tables_a, tables_b):
        with closing(sqlite3.connect(data_dir(stack, app) / "app.db")) as database, database:
            database.execute("INSERT INTO note (text) VALUES (?)", (f"a row of {app.name}",))
    rows = "/app/note.json?_shape=array"
    assert [row["text"] for row in ask(stack, "tables-a", rows).json()] == ["a row of apps/tables-a"]
    assert [row["text"] for row in ask(stack, "tables-b", rows, by="path").json()] == [
        "a row of apps/tables-b"
    ]
    assert "Tables of A" in ask(stack, "tables-a").text
    page = ask(stack, "tables-b", by="path")
    assert "Tables of B" in page.text
    assert 'href="/apps/tables-b/app' in page.text
    update(stack, "tables-a", env={"MOTTO": "Other tables"})
    assert "Other tables" in ask(stack, "tables-a").text
    assert len(ask(stack, "tables-a", rows).json()) == 1
    for app_id in ("tables-a", "tables-b"):
        delete(stack, app_id)
        assert ask(stack, app_id).status == 404


@pytest.mark.parametrize("tier", [SHARED, THREAD], ids=InstanceSpec.IsolationTier.Name)
def test_ariadne_answers_graphql(guest_stack: Stack, tier: InstanceSpec.IsolationTier.ValueType) -> None:
    stack = guest_stack
    ids = [f"graph-{InstanceSpec.IsolationTier.Name(tier).lower()}-{letter}" for letter in "ab"]

    def query(app_id: str, text: str, by: Literal["host", "path"] = "host") -> Any:
        body = json.dumps({"query": text})
        answer = ask(stack, app_id, "/", "POST", body, by=by, headers={"Content-Type": "application/json"})
        return answer.json()["data"]

    for app_id in ids:
        stack.create(app_id, "ariadne_guest:create_app", env={"MOTTO": "one"}, isolation=tier)
        assert query(app_id, f'mutation {{ add(text: "of {app_id}") }}', by="path") == {"add": True}
    update(stack, ids[0], env={"MOTTO": "two"})
    assert query(ids[0], "{ notes motto }") == {"notes": [f"of {ids[0]}"], "motto": "two"}
    assert query(ids[1], "{ notes motto }") == {"notes": [f"of {ids[1]}"], "motto": "one"}
    for app_id in ids:
        delete(stack, app_id)
        assert ask(stack, app_id).status == 404


def test_socketio_talks_over_polling_and_websockets(guest_stack: Stack) -> None:
    stack = guest_stack

    def add(app_id: str, text: str, by: Literal["host", "path"] = "host") -> Any:
        """Speak Engine.IO 4 and Socket.IO 5 by hand: open, connect, emit with acknowledgement 1."""
        with websocket(stack, app_id, "/socket.io/?EIO=4&transport=websocket", by=by) as socket:
            assert str(socket.recv(DEADLINE)).startswith("0{")
            socket.send("40")
            assert str(socket.recv(DEADLINE)).startswith("40{")
            socket.send("421" + json.dumps(["add", text]))
            return json.loads(str(socket.recv(DEADLINE)).removeprefix("431"))[0]

    for app_id in ("events-a", "events-b"):
        assert stack.create(app_id, "socketio_guest:create_app").instances[0].isolation == SHARED
        opened = ask(stack, app_id, "/socket.io/?EIO=4&transport=polling")
        assert "websocket" in json.loads(opened.text.removeprefix("0"))["upgrades"]
    assert add("events-a", "one") == ["one"]
    assert add("events-a", "two", by="path") == ["one", "two"]
    assert add("events-b", "other") == ["other"]
    update(stack, "events-a", env={"ANY": "change"})
    assert add("events-a", "three") == ["one", "two", "three"]
    for app_id in ("events-a", "events-b"):
        delete(stack, app_id)
        assert ask(stack, app_id, "/socket.io/").status == 404


WHEEL = b"no wheel, but named like one"


def upload(stack: Stack, app_id: str, name: str, by: Literal["host", "path"]) -> int:
    """Send a package as twine does."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name=":action"\r\n\r\nfile_upload\r\n',
        b'--x\r\nContent-Disposition: form-data; name="content"; filename="%s"\r\n' % name.encode(),
        b"Content-Type: application/octet-stream\r\n\r\n" + WHEEL + b"\r\n--x--\r\n",
    ]
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return ask(stack, app_id, "/", "POST", b"".join(parts), by=by, headers=kind).status


def test_pypiserver_by_a_factory_shares_the_process(guest_stack: Stack) -> None:
    stack = guest_stack
    ways: tuple[Literal["host", "path"], ...] = ("host", "path")
    for letter, by in zip("ab", ways, strict=True):
        app = stack.create(f"index-{letter}", "pypiserver_guest:create_app")
        assert app.instances[0].isolation == SHARED
        assert upload(stack, f"index-{letter}", f"thing_{letter}-1.0-py3-none-any.whl", by) == 200
    update(stack, "index-a", env={"ANY": "change"})
    for letter, other in ("ab", "ba"):
        listed = ask(stack, f"index-{letter}", "/simple/", by="path").text
        assert f"thing-{letter}" in listed
        assert f"thing-{other}" not in listed
        file = f"/packages/thing_{letter}-1.0-py3-none-any.whl"
        assert ask(stack, f"index-{letter}", file).text == WHEEL.decode()
    for letter in "ab":
        delete(stack, f"index-{letter}")
        assert ask(stack, f"index-{letter}").status == 404


def test_pypiserver_unmodified_runs_in_a_process_of_its_own(guest_stack: Stack) -> None:
    """Its own factory keeps packages under HOME, which is the app's own only where the environment is."""
    stack = guest_stack
    for letter in "ab":
        app = stack.create(f"plain-index-{letter}", "pypiserver:app", isolation=PROCESS)
        folder = data_dir(stack, app) / "packages"
        folder.mkdir(exist_ok=True)
        (folder / f"thing_{letter}-1.0-py3-none-any.whl").write_bytes(WHEEL)
    update(stack, "plain-index-a", env={"ANY": "change"})
    for letter, other in ("ab", "ba"):
        listed = ask(stack, f"plain-index-{letter}", "/simple/").text
        assert f"thing-{letter}" in listed
        assert f"thing-{other}" not in listed
        delete(stack, f"plain-index-{letter}")
        assert ask(stack, f"plain-index-{letter}", by="path").status == 404
