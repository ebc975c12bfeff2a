"""What StartInstance, StopInstance, RestartInstance, GetInstance and ListInstances promise."""

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from tests.fakes.node_client import Refused, Subject, fields_of

from .conftest import MAX_INSTANCES

STALE = (grpc.StatusCode.FAILED_PRECONDITION, "STALE_EPOCH")


async def test_an_accepted_instance_becomes_ready(node: Subject) -> None:
    accepted = await node.start()
    assert accepted.state in {pb.Instance.PENDING, pb.Instance.STARTING, pb.Instance.RUNNING}
    running = await node.reaches(pb.Instance.RUNNING)
    ready = next(c for c in running.conditions if c.type == "Ready")
    assert ready.status == pb.Condition.MET
    assert (running.epoch, running.generation, running.app_uid) == (1, 1, "uid-1")
    assert running.HasField("ready_time")
    assert running.health == pb.Instance.Health.HEALTHY
    assert running.isolation == pb.InstanceSpec.SHARED


async def test_a_repeated_start_returns_the_instance_as_it_is(node: Subject) -> None:
    first = await node.start()
    await node.reaches(pb.Instance.RUNNING)
    again = await node.start()
    assert again.state == pb.Instance.RUNNING
    assert again.create_time == first.create_time
    assert again.restart_count == 0


async def test_a_repeated_start_of_a_failed_instance_starts_nothing(node: Subject) -> None:
    spec = node.spec(entrypoint="no_such_module:create_app")
    await node.start(spec)
    failed = await node.reaches(pb.Instance.FAILED)
    again = await node.start(spec)
    assert again.state == pb.Instance.FAILED
    assert again.last_error.occur_time == failed.last_error.occur_time


async def test_a_known_name_with_another_spec_is_refused(node: Subject) -> None:
    await node.start()
    async with Refused(grpc.StatusCode.ALREADY_EXISTS, "INSTANCE_EXISTS"):
        await node.start(env={"A": "1"})


@pytest.mark.parametrize(("epoch", "generation"), [(4, 9), (5, 6), (1, 1)])
async def test_an_older_epoch_or_generation_is_refused(node: Subject, epoch: int, generation: int) -> None:
    await node.start(epoch=5, generation=7)
    async with Refused(*STALE):
        await node.start(name="apps/shop/instances/b1", epoch=epoch, generation=generation)


@pytest.mark.parametrize(("epoch", "generation"), [(5, 7), (5, 8), (6, 1)])
async def test_a_newer_instance_starts_beside_the_older(node: Subject, epoch: int, generation: int) -> None:
    await node.start(epoch=5, generation=7)
    await node.start(name="apps/shop/instances/b1", epoch=epoch, generation=generation)
    await node.reaches(pb.Instance.RUNNING, "apps/shop/instances/b1")
    assert (await node.reaches(pb.Instance.RUNNING)).epoch == 5


async def test_the_fence_outlives_the_instance_that_set_it(node: Subject) -> None:
    await node.start(epoch=5)
    await node.stop(epoch=5)
    await node.is_gone()
    async with Refused(*STALE):
        await node.start(epoch=4)


async def test_a_stop_under_a_newer_epoch_fences_the_older(node: Subject) -> None:
    await node.start(epoch=2)
    await node.stop(epoch=3)
    await node.is_gone()
    async with Refused(*STALE):
        await node.start(epoch=2)


async def test_an_app_created_anew_under_an_old_name_begins_its_epochs_anew(node: Subject) -> None:
    await node.start(epoch=9)
    await node.stop(epoch=9)
    await node.is_gone()
    await node.start(app_uid="uid-2", epoch=1)
    await node.reaches(pb.Instance.RUNNING)


async def test_every_violation_of_a_spec_is_told_at_once(node: Subject) -> None:
    spec = pb.InstanceSpec(
        name="apps/../instances/x",
        app_uid="../../etc",
        generation=0,
        epoch=-1,
        entrypoint="x" * 300,
        env={"1A": "x"},
        database=pb.Database(external=pb.Database.External(secret_key="URL")),
        domains=["a..example.com"],
        idle_timeout=Duration(nanos=1),
        limits=pb.Limits(max_concurrent_requests=-1, request_timeout=Duration(seconds=99_999)),
        health_check=pb.HealthCheck(path="health", interval=Duration(seconds=1), timeout=Duration(seconds=2)),
        restart_policy=pb.RestartPolicy(max_restarts=2000),
    )
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as refused:
        await node.start(spec)
    assert fields_of(refused.error) == {
        "spec.name",
        "spec.app_uid",
        "spec.generation",
        "spec.epoch",
        "spec.entrypoint",
        'spec.env["1A"]',
        "spec.database.external.secret_key",
        "spec.domains[0]",
        "spec.idle_timeout",
        "spec.limits.max_concurrent_requests",
        "spec.limits.request_timeout",
        "spec.health_check.path",
        "spec.health_check.timeout",
        "spec.restart_policy.max_restarts",
    }


async def test_a_full_node_refuses_one_more(node: Subject) -> None:
    for index in range(MAX_INSTANCES):
        name = f"apps/app-{index}/instances/a"
        await node.start(name=name, app_uid=f"u{index}", activation=pb.InstanceSpec.ON_REQUEST)
    async with Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "NODE_FULL"):
        await node.start(name="apps/one-more/instances/a", app_uid="u")


async def test_an_on_request_instance_is_accepted_dormant(node: Subject) -> None:
    accepted = await node.start(activation=pb.InstanceSpec.ON_REQUEST)
    assert accepted.state == pb.Instance.IDLE
    assert accepted.health == pb.Instance.Health.UNKNOWN


async def test_an_on_request_instance_shows_that_it_starts_and_goes_dormant_again(node: Subject) -> None:
    accepted = await node.start(activation=pb.InstanceSpec.ON_REQUEST, start_now=True)
    assert accepted.state in (pb.Instance.PENDING, pb.Instance.STARTING)
    dormant = await node.reaches(pb.Instance.IDLE)
    assert dormant.HasField("ready_time")
    assert dormant.health == pb.Instance.Health.UNKNOWN


async def test_an_on_request_instance_that_replaces_one_that_is_awake_stays_awake(node: Subject) -> None:
    await node.start()
    await node.reaches(pb.Instance.RUNNING)
    name = "apps/shop/instances/a2"
    await node.start(name=name, epoch=2, activation=pb.InstanceSpec.ON_REQUEST, start_now=True)
    await node.reaches(pb.Instance.RUNNING, name)
    await node.stop(epoch=2)
    await node.is_gone()
    assert (await node.get(name)).state == pb.Instance.RUNNING


async def test_an_on_request_instance_that_does_not_start_when_it_is_to_has_failed(node: Subject) -> None:
    policy = pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY)
    await node.start(
        entrypoint="behaviours:raises_in_startup",
        activation=pb.InstanceSpec.ON_REQUEST,
        start_now=True,
        restart_policy=policy,
    )
    failed = await node.reaches(pb.Instance.FAILED)
    assert failed.last_error.reason == "APP_STARTUP_FAILED"


@pytest.mark.parametrize(
    ("entrypoint", "reason", "text"),
    [
        ("no_such_module:create_app", "ENTRYPOINT_MODULE_NOT_FOUND", "no_such_module"),
        ("cannot_import:create_app", "ENTRYPOINT_IMPORT_FAILED", "RuntimeError"),
        ("behaviours:raises_in_startup", "APP_STARTUP_FAILED", "the startup is broken"),
    ],
)
async def test_an_instance_that_cannot_start_is_failed_with_its_reason(
    node: Subject, entrypoint: str, reason: str, text: str
) -> None:
    policy = pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY)
    await node.start(entrypoint=entrypoint, restart_policy=policy)
    failed = await node.reaches(pb.Instance.FAILED)
    assert failed.last_error.reason == reason
    assert text in failed.last_error.message
    assert failed.health == pb.Instance.Health.UNHEALTHY
    if reason.startswith("ENTRYPOINT_"):
        place = failed.last_error.metadata
        assert place["node"] == failed.node
        for told in (failed.node, *place["app_dirs"].split(":")):
            assert told.startswith(("/", "environments/"))
            assert told in failed.last_error.message
    else:
        assert not failed.last_error.metadata


async def test_an_instance_that_is_never_ready_fails_at_its_time_limit(node: Subject) -> None:
    limits = pb.Limits(start_timeout=Duration(nanos=200_000_000))
    policy = pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY)
    await node.start(entrypoint="behaviours:hangs_in_startup", limits=limits, restart_policy=policy)
    assert (await node.reaches(pb.Instance.FAILED)).last_error.reason == "APP_START_TIMEOUT"


async def test_a_start_that_hangs_can_be_stopped(node: Subject) -> None:
    await node.start(entrypoint="behaviours:hangs_in_startup")
    assert (await node.stop()).state == pb.Instance.STOPPING
    await node.is_gone()


async def test_a_stop_answers_at_once_and_a_repeat_finds_nothing(node: Subject) -> None:
    await node.start()
    await node.reaches(pb.Instance.RUNNING)
    stopping = await node.stop()
    assert stopping.state == pb.Instance.STOPPING
    await node.is_gone()
    assert await node.stop() == pb.Instance()


async def test_stopping_what_never_was_succeeds(node: Subject) -> None:
    assert await node.stop("apps/nobody/instances/a1") == pb.Instance()
    assert await node.stop("apps/nobody/instances/a1", purge_data=True, app_uid="u") == pb.Instance()


async def test_a_stop_of_an_older_epoch_is_refused(node: Subject) -> None:
    await node.start(epoch=3)
    async with Refused(*STALE):
        await node.stop(epoch=2)


async def test_a_stop_for_another_apps_uid_finds_nothing(node: Subject) -> None:
    await node.start()
    assert await node.stop(app_uid="another") == pb.Instance()
    await node.reaches(pb.Instance.RUNNING)


async def test_a_purge_needs_the_apps_uid(node: Subject) -> None:
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as refused:
        await node.stop(purge_data=True)
    assert fields_of(refused.error) == {"app_uid"}


async def test_a_start_after_a_stop_begins_a_new_life(node: Subject) -> None:
    first = await node.start()
    await node.stop()
    await node.is_gone()
    again = await node.start(epoch=2)
    assert again.create_time.ToNanoseconds() > first.create_time.ToNanoseconds()
    await node.reaches(pb.Instance.RUNNING)


async def test_a_start_during_the_stop_returns_the_stopping_instance(node: Subject) -> None:
    spec = node.spec(entrypoint="behaviours:slow_to_stop")
    spec.config["stop_seconds"] = 1.5
    await node.start(spec)
    await node.reaches(pb.Instance.RUNNING)
    await node.stop()
    assert (await node.start(spec)).state == pb.Instance.STOPPING
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "INSTANCE_STOPPING"):
        await node.restart()
    await node.is_gone()


async def test_a_restart_keeps_name_epoch_and_generation(node: Subject) -> None:
    await node.start(epoch=2, generation=3)
    before = await node.reaches(pb.Instance.RUNNING)
    restarting = await node.restart(epoch=2)
    assert restarting.state in {pb.Instance.PENDING, pb.Instance.STARTING}
    after = await node.reaches(pb.Instance.RUNNING)
    assert (after.epoch, after.generation, after.restart_count) == (2, 3, 1)
    assert after.ready_time.ToNanoseconds() > before.ready_time.ToNanoseconds()
    assert after.create_time == before.create_time


async def test_a_repeated_restart_request_restarts_once(node: Subject) -> None:
    await node.start()
    await node.reaches(pb.Instance.RUNNING)
    await node.restart(request_id="r1")
    await node.reaches(pb.Instance.RUNNING)
    assert (await node.restart(request_id="r1")).restart_count == 1
    assert (await node.restart(request_id="r2")).restart_count == 2


async def test_a_restart_starts_a_failed_instance_again(node: Subject) -> None:
    policy = pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY)
    await node.start(entrypoint="behaviours:raises_in_startup", restart_policy=policy)
    first = await node.reaches(pb.Instance.FAILED)
    assert (await node.restart()).state in {pb.Instance.PENDING, pb.Instance.STARTING}
    second = await node.reaches(pb.Instance.FAILED)
    assert second.last_error.occur_time.ToNanoseconds() > first.last_error.occur_time.ToNanoseconds()


async def test_restarts_of_the_unknown_and_of_older_epochs_are_refused(node: Subject) -> None:
    async with Refused(grpc.StatusCode.NOT_FOUND, "INSTANCE_NOT_FOUND"):
        await node.restart("apps/nobody/instances/a1")
    await node.start(epoch=3)
    async with Refused(*STALE):
        await node.restart(epoch=2)
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as refused:
        await node.restart("nonsense", epoch=0, request_id="x" * 129)
    assert fields_of(refused.error) == {"name", "epoch", "request_id"}


async def test_instances_are_listed_by_name_in_pages(node: Subject) -> None:
    names = [f"apps/{app}/instances/{i}" for app in ("a", "b") for i in ("x1", "x2", "x3")]
    for name in reversed(names):
        await node.start(name=name, app_uid=f"u-{name[5]}", activation=pb.InstanceSpec.ON_REQUEST)
    found, token = [], ""
    while True:
        request = pb.ListInstancesRequest(parent="apps/-", page_size=2, page_token=token)
        page = await node.stub.ListInstances(request)
        assert len(page.instances) <= 2
        found += [instance.name for instance in page.instances]
        token = page.next_page_token
        if not token:
            break
    assert found == names
    of_b = await node.stub.ListInstances(pb.ListInstancesRequest(parent="apps/b"))
    assert [instance.name for instance in of_b.instances] == names[3:]
    assert not of_b.next_page_token


@pytest.mark.parametrize("token", ["nonsense", "apps/a/instances/x", "%%%", "ü"])
async def test_a_foreign_page_token_is_refused(node: Subject, token: str) -> None:
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"):
        await node.stub.ListInstances(pb.ListInstancesRequest(parent="apps/b", page_token=token))


async def test_names_and_parents_are_checked(node: Subject) -> None:
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await node.get("apps/shop")
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await node.stub.ListInstances(pb.ListInstancesRequest(parent="shop"))
    async with Refused(grpc.StatusCode.NOT_FOUND, "INSTANCE_NOT_FOUND"):
        await node.get()


async def test_a_secret_is_in_no_answer(node: Subject) -> None:
    secret = "hunter2-hunter2"
    accepted = await node.start(secret_env={"KEY": secret})
    running = await node.reaches(pb.Instance.RUNNING)
    listed = await node.stub.ListInstances(pb.ListInstancesRequest(parent="apps/-"))
    for message in (accepted, running, await node.get(), listed):
        assert secret.encode() not in message.SerializeToString()
    async with Refused(grpc.StatusCode.ALREADY_EXISTS, "INSTANCE_EXISTS") as refused:
        await node.start(secret_env={"KEY": secret + "x"})
    assert secret not in str(refused.error)


async def test_the_status_tells_who_the_node_is(node: Subject) -> None:
    await node.start(activation=pb.InstanceSpec.ON_REQUEST)
    status = await node.stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest())
    assert status.node.startswith("environments/default/nodes/")
    assert status.incarnation
    assert (status.instance_count, status.max_instances) == (1, MAX_INSTANCES)
    assert status.base_domain == "localhost"
    assert status.memory_bytes > 0
    assert not status.draining
    later = await node.stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest())
    assert later.monotonic_time.ToNanoseconds() > status.monotonic_time.ToNanoseconds()
