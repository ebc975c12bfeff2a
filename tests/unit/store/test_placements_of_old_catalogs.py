"""A catalog of before placements, opened: where its apps run, and what of them serves, is known as before."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from services.control_plane.placement.assignment import spec_of
from services.control_plane.store.records import Role, Version
from services.control_plane.store.sql_store import open_store

NODE = "environments/default/nodes/n"


def old_catalog(path: Path, apps: list[dict[str, Any]]) -> None:
    """Make a catalog of the first schema with these apps."""
    config = Config()
    config.set_main_option("script_location", "services.control_plane.store.sql:migrations")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO meta VALUES (1, 'an-id', 40, 5, 7)")
        connection.execute("INSERT INTO environments VALUES ('environments/default', x'', 1)")
        for number, app in enumerate(apps):
            row = {
                "name": f"apps/a{number}", "uid": f"uid-{number}", "environment": "environments/default",
                "node": NODE, "desired_state": 1, "generation": 2, "target_generation": 2, "target_epoch": 1,
                "served_generation": None, "served_epoch": None, "failed_generation": None,
                "failed_epoch": None, "deleting": 0, "spec": spec("new:app"), "status": b"",
                "served_spec": None, "create_time": 1, "update_time": 3, "revision": 3 + 4 * number, **app,
            }  # fmt: skip
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO apps ({names}) VALUES ({marks})", tuple(row.values()))
            connection.execute(
                "INSERT INTO changes VALUES (?, 'app', ?, 0, 3)", (row["revision"], row["name"])
            )


def spec(entrypoint: str, **fields: Any) -> bytes:
    return App(name="apps/x", entrypoint=entrypoint, labels={"l": "1"}, **fields).SerializeToString()


def served(generation: int, epoch: int) -> dict[str, int]:
    return {"served_generation": generation, "served_epoch": epoch}


IN, CURRENT, OUT = Role.INCOMING, Role.CURRENT, Role.OUTGOING
CASES: dict[str, tuple[dict[str, Any], list[tuple[str, Role, str, bool]]]] = {
    "serving": (served(2, 1), [("g2-e1", CURRENT, "new:app", True)]),
    "never placed": ({"node": ""}, []),
    "never ready": ({}, [("g2-e1", IN, "new:app", False)]),
    "updating": (
        {**served(1, 1), "served_spec": spec("old:app")},
        [("g1-e1", CURRENT, "old:app", True), ("g2-e1", IN, "new:app", True)],
    ),
    "update given up": (
        {**served(1, 1), "served_spec": spec("old:app"), "failed_generation": 2, "failed_epoch": 1},
        [("g1-e1", CURRENT, "old:app", True)],
    ),
    "restarting": (
        {**served(2, 1), "target_epoch": 2},
        [("g2-e1", CURRENT, "new:app", True), ("g2-e2", IN, "new:app", True)],
    ),
    "stopped": (
        {**served(2, 1), "spec": spec("new:app", desired_state=App.STOPPED)},
        [("g2-e1", CURRENT, "new:app", True)],
    ),
    "dormant, never run for all that is known": (
        {**served(2, 1), "spec": spec("new:app", activation=InstanceSpec.ON_REQUEST)},
        [("g2-e1", CURRENT, "new:app", False)],
    ),
    "being deleted": ({**served(2, 1), "deleting": 1}, [("g2-e1", OUT, "new:app", True)]),
}


def test_the_rows_of_before_become_placements(tmp_path: Path) -> None:
    old_catalog(tmp_path / "c.db", [row for row, _ in CASES.values()])
    store = open_store(f"sqlite:///{tmp_path}/c.db")
    try:
        for number, (name, (row, expected)) in enumerate(CASES.items()):
            app = store.mirror.apps.get(f"apps/a{number}")
            assert app is not None
            found = store.mirror.placements_of(app.name)
            assert [
                (it.instance_id, it.role, spec_of(it).entrypoint, it.has_data)
                for it in sorted(found, key=lambda it: (it.generation, it.epoch))
            ] == expected, name
            assert all((it.node, it.app_uid) == (NODE, app.uid) for it in found)
            assert not any(spec_of(it).labels for it in found)
            failed = row.get("failed_generation")
            assert app.failed == (Version(failed, row["failed_epoch"]) if failed else None)
        assert store.mirror.count_on(NODE) == len(CASES) - 1
    finally:
        store.close()


@pytest.mark.parametrize("apps", [0, 2_500])
def test_a_catalog_of_any_size_is_brought_over_once(tmp_path: Path, apps: int) -> None:
    old_catalog(tmp_path / "c.db", [{**served(2, 1), "revision": 8} for _ in range(apps)])
    for _ in range(2):
        store = open_store(f"sqlite:///{tmp_path}/c.db")
        assert len(store.mirror.keys("placements")) == len(store.mirror.apps) == apps
        store.close()
