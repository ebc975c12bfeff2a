"""Changes of a running app, dormancy and starts, under requests that go on all the while."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from websockets.exceptions import ConnectionClosed

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1 import runtime_environment_pb2 as runtime
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance, InstanceSpec, Limits
from tests.e2e.conftest import GUEST_DIRS
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.e2e.traffic import (
    Answer,
    ask,
    burst,
    data_dir,
    delete,
    info_of,
    reason_of,
    traffic,
    update,
    websocket,
)

SHARED, THREAD, PROCESS = InstanceSpec.SHARED, InstanceSpec.THREAD, InstanceSpec.PROCESS


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """Give a stack of guests that the test may kill."""
    stack = Stack(tmp_path / "stack", app_dirs=GUEST_DIRS)
    try:
        yield stack.start()
    finally:
        stack.clean_up()


@pytest.mark.parametrize("entrypoint", ["flask_factory:create_app", "starlette_chat:create_app"])
def test_a_change_of_tier_fails_no_request(guest_stack: Stack, entrypoint: str) -> None:
    app_id = f"tiers-{entrypoint.partition('_')[0]}"
    guest_stack.create(app_id, entrypoint)
    with traffic(guest_stack, app_id, "/about") as flow:
        for tier in (THREAD, PROCESS, SHARED):
            before = flow.answers
            app = update(guest_stack, app_id, isolation=tier)
            assert app.instances[-1].isolation == tier
            eventually(lambda before=before: flow.answers > before + 50, "requests go on")
    assert flow.failures == []
    processes = {json.loads(body)["pid"] for body in flow.seen}
    assert guest_stack.node_pid() in processes
    assert len(processes) == 2
    delete(guest_stack, app_id)


def test_thirty_updates_fail_no_request_of_two_hundred_per_second(guest_stack: Stack) -> None:
    guest_stack.create("swapped", "behaviours:ready", env={"TURN": "0"})
    with traffic(guest_stack, "swapped", "/", per_second=200) as flow:
        for turn in range(1, 31):
            answered = flow.answers
            match turn % 3:
                case 0:
                    update(guest_stack, "swapped", env={"TURN": str(turn)})
                case 1:
                    update(guest_stack, "swapped", config={"turn": turn})
                case 2:
                    entrypoint = ("behaviours:leaves_tasks", "behaviours:ready")[turn // 3 % 2]
                    update(guest_stack, "swapped", entrypoint=entrypoint)
            eventually(lambda answered=answered: flow.answers > answered + 20, "requests go on")
    app = guest_stack.get("swapped")
    assert app.generation == 31
    assert flow.failures == []
    assert f"swapped g{app.generation}-e1 {app.generation}" in flow.seen
    delete(guest_stack, "swapped")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("behaviours:raises_in_factory", "APP_FACTORY_FAILED"),
        ("behaviours:raises_in_startup", "APP_STARTUP_FAILED"),
        ("cannot_import:app", "ENTRYPOINT_IMPORT_FAILED"),
        ("nowhere:app", "ENTRYPOINT_MODULE_NOT_FOUND"),
    ],
)
def test_an_update_that_does_not_start_leaves_the_old_version_serving(
    guest_stack: Stack, broken: str, reason: str
) -> None:
    stack, app_id = guest_stack, f"kept-{broken.partition(':')[2].replace('_', '-')}-{reason[:3].lower()}"
    stack.create(app_id, "behaviours:ready")
    with traffic(stack, app_id, "/", per_second=100) as flow:
        request = catalog.UpdateAppRequest(app=catalog.App(name=f"apps/{app_id}", entrypoint=broken))
        failed = stack.wait(stack.apps.UpdateApp(request, timeout=DEADLINE))
        assert reason_of(failed) == reason
        if reason.startswith("ENTRYPOINT_"):
            app_dirs = info_of(failed).metadata["app_dirs"].split(":")
            assert app_dirs == [str(directory) for directory in stack.app_dirs]
            assert all(told in failed.error.message for told in (info_of(failed).metadata["node"], *app_dirs))
        answered = flow.answers
        eventually(lambda: flow.answers > answered + 20, "the old version serves")
    assert flow.failures == []
    assert flow.seen == {f"{app_id} g1-e1 1"}
    app = stack.get(app_id)
    updated = next(condition for condition in app.conditions if condition.type == "Updated")
    assert (app.state, updated.status, updated.reason) == (Instance.RUNNING, Condition.UNMET, reason)
    assert update(stack, app_id, entrypoint="behaviours:ready").state == Instance.RUNNING
    delete(stack, app_id)


@pytest.mark.parametrize("tier", [SHARED, PROCESS], ids=InstanceSpec.IsolationTier.Name)
def test_a_websocket_survives_a_swap_until_the_stops_time_is_over(
    guest_stack: Stack, tier: InstanceSpec.IsolationTier.ValueType
) -> None:
    app_id = f"held-{InstanceSpec.IsolationTier.Name(tier).lower()}"
    limits = Limits(stop_timeout=Duration(seconds=5))
    guest_stack.create(
        app_id, "starlette_chat:create_app", isolation=tier, limits=limits, env={"MOTTO": "one"}
    )
    with websocket(guest_stack, app_id, "/room") as old:
        request = catalog.UpdateAppRequest(app=catalog.App(name=f"apps/{app_id}", env={"MOTTO": "two"}))
        request.update_mask.paths.append("env")
        updating = guest_stack.apps.UpdateApp(request, timeout=DEADLINE)

        def swapped() -> bool:
            return bool(ask(guest_stack, app_id, "/about").json()["motto"] == "two")

        eventually(swapped, "the new version serves")
        old.send("still here")
        assert old.recv(DEADLINE) == "still here"
        with websocket(guest_stack, app_id, "/room") as new:
            new.send("to the new one")
            assert new.recv(DEADLINE) == "to the new one", "which knows nothing of the old one's listeners"
        with pytest.raises(ConnectionClosed) as closed:
            old.recv(DEADLINE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    guest_stack.result(updating)
    delete(guest_stack, app_id)


def starts(stack: Stack, app: catalog.App) -> int:
    """Return how often an app of behaviours:counts_starts was started."""
    file = data_dir(stack, app) / "starts"
    return len(file.read_text()) if file.exists() else 0


def test_two_hundred_first_requests_start_a_dormant_app_once(guest_stack: Stack) -> None:
    limits = Limits(max_queued_requests=136)  # and 64 to be served
    app = guest_stack.create(
        "sleeper", "behaviours:counts_starts", activation=InstanceSpec.ON_REQUEST, limits=limits
    )
    assert (app.state, starts(guest_stack, app)) == (Instance.IDLE, 0)
    assert [answer.status for answer in burst(guest_stack, "sleeper", 200)] == [200] * 200
    assert starts(guest_stack, app) == 1
    delete(guest_stack, "sleeper")


def test_dormancy_works_without_the_control_plane_and_a_stop_outlasts_it(own_stack: Stack) -> None:
    stack = own_stack
    app = stack.create(
        "sleeper",
        "behaviours:counts_starts",
        activation=InstanceSpec.ON_REQUEST,
        idle_timeout=Duration(seconds=1),
    )

    def dormant() -> bool:
        with stack.runtime() as node:
            from_node = node.ListInstances(
                runtime.ListInstancesRequest(parent="apps/-"), timeout=DEADLINE
            ).instances
        return [instance.state for instance in from_node] == [Instance.IDLE]

    assert ask(stack, "sleeper").status == 200
    eventually(dormant, "it goes dormant")  # by its node, for the catalog may not know yet that it woke
    eventually(lambda: stack.get("sleeper").state == Instance.IDLE, "it is told as dormant")
    stack.control_plane.kill()
    assert [answer.status for answer in burst(stack, "sleeper", 50)] == [200] * 50
    # Where a burst takes longer than the app may be idle, it starts more than once.
    assert starts(stack, app) >= 2

    eventually(dormant, "it goes dormant again, alone with its node")
    stack.control_plane.start()
    stack.wait_until_called()
    stopped = stack.result(stack.apps.StopApp(catalog.StopAppRequest(name="apps/sleeper"), timeout=DEADLINE))
    assert stopped.state == Instance.STOPPED
    started_before = starts(stack, app)
    assert all(answer.status == 404 for answer in burst(stack, "sleeper", 10))
    stack.nodes["node-1"].kill()
    stack.nodes["node-1"].start()
    eventually(lambda: stack.http("sleeper")[0] == 404, "the node is back")
    eventually(lambda: stack.get("sleeper").state == Instance.STOPPED, "the control plane hears it")
    assert starts(stack, app) == started_before
    started = stack.result(
        stack.apps.StartApp(catalog.StartAppRequest(name="apps/sleeper"), timeout=DEADLINE)
    )
    assert started.state == Instance.IDLE
    assert ask(stack, "sleeper").status == 200
    assert starts(stack, app) == started_before + 1


def first_answer(stack: Stack, app_id: str) -> Answer:
    """Return the first answer of an app's own node: before that one knows the app it answers 404."""
    answer = eventually(
        lambda: found if (found := ask(stack, app_id)).reason != "APP_NOT_FOUND" else None,
        "its node knows it",
    )
    assert answer is not None
    return answer


def created(stack: Stack, app_id: str, entrypoint: str, **fields: object) -> operations_pb2.Operation:
    """Create an app and don't wait for anything."""
    app = catalog.App(entrypoint=entrypoint, **fields)  # type: ignore[arg-type]
    return stack.apps.CreateApp(catalog.CreateAppRequest(app_id=app_id, app=app), timeout=DEADLINE)


def let_go(stack: Stack, app_id: str) -> None:
    """Let an app go on that waits for the file `go` in its data directory."""
    folder = data_dir(stack, stack.get(app_id))
    eventually(folder.is_dir, "its node has made its data directory")
    (folder / "go").touch()


@pytest.mark.parametrize("tier", [SHARED, THREAD, PROCESS], ids=InstanceSpec.IsolationTier.Name)
def test_a_request_to_an_app_that_starts_is_held_until_it_is_ready(
    guest_stack: Stack, tier: InstanceSpec.IsolationTier.ValueType
) -> None:
    app_id = f"fresh-{InstanceSpec.IsolationTier.Name(tier).lower()}"
    operation = created(guest_stack, app_id, "behaviours:waits_in_factory", isolation=tier)
    with ThreadPoolExecutor(1) as asking:
        answer = asking.submit(first_answer, guest_stack, app_id)
        with pytest.raises(TimeoutError):
            answer.result(0.5)  # that there is none yet can only be waited for
        let_go(guest_stack, app_id)
        assert answer.result().status == 200
    guest_stack.result(operation)
    delete(guest_stack, app_id)


def test_requests_held_for_a_start_that_fails_are_told_why(guest_stack: Stack) -> None:
    operation = created(guest_stack, "doomed", "behaviours:fails_slowly")
    told = first_answer(guest_stack, "doomed")
    assert (told.status, told.reason) == (503, "APP_FACTORY_FAILED")
    assert reason_of(guest_stack.wait(operation)) == "APP_FACTORY_FAILED"
    eventually(lambda: guest_stack.get("doomed").state == Instance.FAILED, "it is told as failed")
    delete(guest_stack, "doomed")


def test_a_request_held_for_a_start_waits_for_its_time_limit_at_most(guest_stack: Stack) -> None:
    limits = Limits(request_timeout=Duration(nanos=500_000_000))
    operation = created(guest_stack, "late", "behaviours:waits_in_factory", limits=limits)
    told = first_answer(guest_stack, "late")
    assert (told.status, told.reason) == (504, "REQUEST_TIMEOUT")
    let_go(guest_stack, "late")
    guest_stack.result(operation)
    update(guest_stack, "late", limits=Limits())
    assert ask(guest_stack, "late").status == 200
    delete(guest_stack, "late")
