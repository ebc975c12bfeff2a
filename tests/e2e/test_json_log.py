"""Both programs with `--log-format json`: whatever happens, each line that they write is one JSON object."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT, Stack, eventually

TALKATIVE = """
import logging, sys

def create_app(context):
    async def app(scope, receive, send):
        print("on stdout\\r\\x1b[2J")
        logging.getLogger("shop.tills").warning("two\\nlines")
        raise RuntimeError("it broke")
    return app
"""


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setenv("APPSUPERVISOR_LOG_FORMAT", "json")
    monkeypatch.setenv("APPSUPERVISOR_ECHO_APP_LOGS", "true")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/talkative.py").write_text(TALKATIVE)
    stack = Stack(tmp_path / "stack", app_dirs=(tmp_path / "code",))
    yield stack
    stack.clean_up()


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_both_programs_is_one_json_object(stack: Stack) -> None:
    stack.start()
    stack.create("shop", "talkative:create_app")
    assert stack.http("shop")[0] == 500
    node = stack.nodes["node-1"]
    eventually(lambda: "it broke" in node.text() and "shop.tills" in node.text(), "the app's lines")
    assert node.terminate() == 0
    assert stack.control_plane.terminate() == 0
    told = [event for event in events(node.text()) if event.get("action") == "app.log"]
    by_source = {event["source"]: event for event in told}
    assert by_source["stdout"]["message"] == "on stdout\r\x1b[2J"
    assert by_source["shop.tills"]["message"] == "two\nlines"
    assert by_source["shop.tills"]["severity"] == "WARNING"
    assert {event["app"] for event in told} == {"apps/shop"}
    assert {event["instance"] for event in told} == {"apps/shop/instances/g1-e1"}
    assert any("RuntimeError: it broke" in event["message"] for event in told)
    assert {"control_plane.ready", "control_plane.stopping"} <= {
        event.get("action") for event in events(stack.control_plane.text())
    }


UNFORESEEN = """
import sys
from services.control_plane import server
from services.control_plane.__main__ import main

async def serve(settings):
    raise RuntimeError("unforeseen")

server.serve = serve
sys.argv = ["control-plane", "--log-format=json"]
sys.exit(main())
"""


def test_a_fault_that_nobody_foresaw_is_told_before_the_end() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UNFORESEEN], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    (event,) = events(ended.stderr)
    assert (ended.returncode, event["action"]) == (1, "control_plane.failed")
    assert "RuntimeError: unforeseen" in event["traceback"]
