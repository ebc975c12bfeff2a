"""What an app leaves behind when it stops is named, by its holder, in the app's timeline."""

from pathlib import Path

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from tests.e2e.stack import DEADLINE, Stack

LEAKY = """
from starlette.applications import Starlette

keep = []


def create_app(context):
    app = Starlette()
    keep.append(app)
    return app
"""
TRIES = 20  # the search for the holder is cut off after a while, which a busy machine may not meet


def test_who_holds_a_stopped_app_is_told_in_its_timeline(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "leaky.py").write_text(LEAKY)
    stack = Stack(tmp_path / "stack", app_dirs=(tmp_path / "code",))
    try:
        stack.start()
        stack.create("shop", "leaky:create_app")
        told: list[catalog.AppEvent] = []
        for _ in range(TRIES):
            stack.result(stack.apps.StopApp(catalog.StopAppRequest(name="apps/shop"), timeout=DEADLINE))
            timeline = catalog.ListAppEventsRequest(parent="apps/shop")
            events = stack.apps.ListAppEvents(timeline, timeout=DEADLINE).app_events
            if told := [event for event in events if event.type == "Leaked"]:
                break
            stack.result(stack.apps.StartApp(catalog.StartAppRequest(name="apps/shop"), timeout=DEADLINE))
        assert told
        assert told[0].reason == "APP_LEAKED"
        assert "leaky.keep holds it" in told[0].message
        assert told[0].instance.startswith("apps/shop/instances/")
    finally:
        stack.clean_up()
