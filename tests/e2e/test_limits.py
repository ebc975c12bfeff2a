"""What an app may use by default or by its spec, and what becomes of one that fails again and again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec, Limits, RestartPolicy
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.e2e.traffic import ask, burst, data_dir, delete

MIB = 1024 * 1024
SHARED, PROCESS = InstanceSpec.SHARED, InstanceSpec.PROCESS


def milliseconds(count: int) -> Duration:
    return Duration(seconds=count // 1000, nanos=count % 1000 * 1_000_000)


def events(stack: Stack, app_id: str) -> list[catalog.AppEvent]:
    """Return an app's timeline, newest first."""
    request = catalog.ListAppEventsRequest(parent=f"apps/{app_id}")
    return list(stack.apps.ListAppEvents(request, timeout=DEADLINE).app_events)


@pytest.mark.parametrize("tier", [SHARED, PROCESS], ids=InstanceSpec.IsolationTier.Name)
def test_by_default_64_requests_are_served_128_wait_and_more_are_told_to_come_again(
    guest_stack: Stack, tier: InstanceSpec.IsolationTier.ValueType
) -> None:
    app_id = f"crowded-{InstanceSpec.IsolationTier.Name(tier).lower()}"
    app = guest_stack.create(app_id, "behaviours:holds_requests", isolation=tier)
    with ThreadPoolExecutor(1) as asking:
        answering = asking.submit(burst, guest_stack, app_id, 64 + 128 + 40)

        def full() -> bool:
            figures = guest_stack.figures(app_id)
            return (figures.in_flight_count, figures.queued_count, figures.shed_count) == (64, 128, 40)

        eventually(full, "all have come")
        (data_dir(guest_stack, app) / "go").touch()
        answers = answering.result()
    assert sum(answer.status == 200 for answer in answers) == 64 + 128
    for shed in (answer for answer in answers if answer.status != 200):
        assert (shed.status, shed.reason, shed.headers["retry-after"]) == (503, "SERVER_BUSY", "1")
    delete(guest_stack, app_id)


def test_a_body_beyond_its_limit_is_refused(guest_stack: Stack) -> None:
    limits = Limits(max_request_body_bytes=1000)
    guest_stack.create("small-bodies", "flask_factory:create_app", limits=limits)
    guest_stack.create("default-bodies", "flask_factory:create_app")
    assert ask(guest_stack, "small-bodies", "/notes", "POST", b"x" * 1000).status == 201
    for app_id, size in (("small-bodies", 1001), ("default-bodies", 32 * MIB + 1)):
        # The length alone tells: the answer comes before the body is sent.
        refused = ask(guest_stack, app_id, "/notes", "POST", headers={"Content-Length": str(size)})
        assert (refused.status, refused.reason) == (413, "REQUEST_BODY_TOO_LARGE")
    assert len(ask(guest_stack, "small-bodies", "/notes").json()) == 1
    delete(guest_stack, "small-bodies")
    delete(guest_stack, "default-bodies")


@pytest.mark.parametrize("tier", [SHARED, PROCESS], ids=InstanceSpec.IsolationTier.Name)
def test_a_request_beyond_its_time_is_answered_504(
    guest_stack: Stack, tier: InstanceSpec.IsolationTier.ValueType
) -> None:
    app_id = f"slow-{InstanceSpec.IsolationTier.Name(tier).lower()}"
    limits = Limits(request_timeout=milliseconds(300))
    guest_stack.create(
        app_id, "behaviours:slow_requests", isolation=tier, limits=limits, config={"seconds": 600}
    )
    late = ask(guest_stack, app_id)
    assert (late.status, late.reason) == (504, "REQUEST_TIMEOUT")
    delete(guest_stack, app_id)


def test_memory_beyond_the_limit_ends_the_process_and_it_is_back_after_its_backoff(
    guest_stack: Stack,
) -> None:
    stack = guest_stack
    stack.create("greedy", "greedy:app", limits=Limits(memory_bytes=96 * MIB))
    stack.create("neighbour", "behaviours:ready")
    first = ask(stack, "greedy", "/?mib=16")
    assert first.status == 200
    refused = ask(stack, "greedy", "/?mib=1024")
    assert (refused.status, refused.reason) == (500, "APP_RAISED"), "one huge piece is a MemoryError"
    assert ask(stack, "greedy").text == first.text
    died = ask(stack, "greedy", "/?mib=110&seconds=60")
    assert (died.status, died.reason) == (502, "APP_OUT_OF_MEMORY")
    assert ask(stack, "neighbour").status == 200
    back = ask(stack, "greedy")  # it waits for the restart, which is a second away
    assert (back.status, back.text != first.text) == (200, True)
    told = eventually(
        lambda: [event for event in events(stack, "greedy") if event.reason == "APP_OUT_OF_MEMORY"],
        "the end is on its timeline",
    )
    assert "96 MiB" in told[0].message
    eventually(lambda: restarted(stack, "greedy") == 1, "it is told to run again")
    app = stack.get("greedy")
    assert app.instances[0].last_error.reason == "APP_OUT_OF_MEMORY"
    delete(stack, "greedy")
    delete(stack, "neighbour")


def restarted(stack: Stack, app_id: str) -> int:
    """Return how often a running app was restarted; -1 while it does not run."""
    app = stack.get(app_id)
    return app.instances[0].restart_count if app.state == Instance.RUNNING else -1


def crash_loop(stack: Stack, app_id: str) -> catalog.App | None:
    """Return the app if it says of itself that it crashes again and again."""
    app = stack.get(app_id)
    ready = next(condition for condition in app.conditions if condition.type == "Ready")
    return app if ready.reason == "APP_CRASH_LOOP" else None


def test_a_crash_loop_is_left_with_its_reason_and_a_start_by_hand_works_at_once(guest_stack: Stack) -> None:
    stack = guest_stack
    policy = RestartPolicy(max_restarts=2, min_backoff=milliseconds(100), max_backoff=milliseconds(200))
    stack.create("looping", "greedy:app", restart_policy=policy)
    for restarts in range(3):
        eventually(lambda count=restarts: restarted(stack, "looping") == count, "it runs again")
        died = ask(stack, "looping", "/?exit=3")
        assert (died.status, died.reason) == (502, "APP_CRASHED")
    app = eventually(lambda: crash_loop(stack, "looping"), "it is left failed")
    assert (app.state, app.health, app.reconciling) == (Instance.FAILED, Instance.Health.UNHEALTHY, False)
    assert app.instances[0].last_error.reason == "APP_CRASHED"
    refused = ask(stack, "looping")
    assert (refused.status, refused.reason) == (503, "APP_CRASH_LOOP")
    eventually(lambda: events(stack, "looping")[0].reason == "APP_CRASH_LOOP", "it is on its timeline")
    started = stack.result(
        stack.apps.StartApp(catalog.StartAppRequest(name="apps/looping"), timeout=DEADLINE)
    )
    assert started.state == Instance.RUNNING
    assert ask(stack, "looping").status == 200
    delete(stack, "looping")


def test_an_app_that_waits_long_for_its_restart_is_started_by_hand_at_once(guest_stack: Stack) -> None:
    stack = guest_stack
    policy = RestartPolicy(min_backoff=Duration(seconds=600), max_backoff=Duration(seconds=600))
    stack.create("patient", "greedy:app", restart_policy=policy)
    assert ask(stack, "patient", "/?exit=3").status == 502
    eventually(lambda: stack.get("patient").state == Instance.FAILED, "it has failed")
    refused = ask(stack, "patient")
    assert (refused.status, refused.reason) == (503, "APP_CRASHED")
    assert 300 < int(refused.headers["retry-after"]) <= 750
    stack.result(stack.apps.StartApp(catalog.StartAppRequest(name="apps/patient"), timeout=DEADLINE))
    assert ask(stack, "patient").status == 200
    delete(stack, "patient")
