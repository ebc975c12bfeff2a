"""Code that changes on disk, with real processes: an update without a change says so, a restart loads it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from tests.e2e.stack import DEADLINE, Stack

SOURCE = """
def create_app(context):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%s"})
    return app
"""


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """Give a stack with a folder of the test's own code."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my/hello.py").write_text(SOURCE % "one")
    stack = Stack(tmp_path / "stack", app_dirs=(tmp_path / "my",))
    try:
        yield stack.start()
    finally:
        stack.clean_up()


def test_an_edit_is_told_by_an_update_without_a_change_and_loaded_by_a_restart(
    own_stack: Stack, tmp_path: Path
) -> None:
    app = own_stack.create("mine", "hello:create_app")
    ran = app.instances[0].code.digest
    same = catalog.UpdateAppRequest(app=catalog.App(name="apps/mine", entrypoint="hello:create_app"))
    assert not metadata(own_stack, same).notice
    (tmp_path / "my/hello.py").write_text(SOURCE % "another")
    told = metadata(own_stack, same).notice
    assert f"is other than what runs ({ran[:12]}); RestartApp loads it." in told
    assert own_stack.http("mine") == (200, "one")
    restart = catalog.RestartAppRequest(name="apps/mine")
    app = own_stack.result(own_stack.apps.RestartApp(restart, timeout=DEADLINE))
    now = app.instances[-1].code.digest
    assert now not in ("", ran)
    assert now[:12] in told
    assert own_stack.http("mine") == (200, "another")
    assert not metadata(own_stack, same).notice


def metadata(stack: Stack, request: catalog.UpdateAppRequest) -> catalog.OperationMetadata:
    found = catalog.OperationMetadata()
    operation = stack.wait(stack.apps.UpdateApp(request, timeout=DEADLINE))
    assert operation.metadata.Unpack(found)
    return found
