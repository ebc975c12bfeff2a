"""What a client and an operator see of a guest whose request, or whose process, ends as it should not."""

import os

import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from tests.eventually import eventually

from .conftest import Hosted

ODD = {"entrypoint": "odd_ends:create_app", "isolation": pb.InstanceSpec.PROCESS}


@pytest.mark.parametrize("path", ["/string-body", "/cancel-itself"])
async def test_an_apps_own_fault_in_a_request_is_500_and_its_process_lives_on(
    hosted_with_processes: Hosted, path: str
) -> None:
    hosted = hosted_with_processes
    await hosted.start(**ODD)
    await hosted.reaches(pb.Instance.RUNNING)
    before = (await hosted.ask("shop")).text
    answer = await hosted.ask("shop", path)
    assert (answer.status_code, answer.json()["reason"]) == (500, "APP_RAISED")
    assert (await hosted.ask("shop")).text == before
    assert (await hosted.get()).restart_count == 0


async def test_a_guest_that_somebody_terminates_is_started_again_and_says_why(
    hosted_with_processes: Hosted,
) -> None:
    hosted = hosted_with_processes
    quick = pb.RestartPolicy()
    quick.min_backoff.FromMilliseconds(10)
    await hosted.start(**ODD, restart_policy=quick)
    await hosted.reaches(pb.Instance.RUNNING)
    before = int((await hosted.ask("shop")).text)
    os.kill(before, 15)
    # It is FAILED for its backoff alone, which may be over before anyone looks; what it failed of is kept.
    ended = await eventually(hosted.get, lambda instance: bool(instance.last_error.reason))
    assert ended.last_error.reason == "APP_EXITED"
    assert "SIGTERM" in ended.last_error.message
    # Held while the next process comes up.
    after = await hosted.ask("shop")
    assert after.status_code == 200
    assert int(after.text) != before


async def test_a_forked_child_that_is_terminated_leaves_its_parent_serving(
    hosted_with_processes: Hosted,
) -> None:
    hosted = hosted_with_processes
    await hosted.start(**ODD)
    await hosted.reaches(pb.Instance.RUNNING)
    before = (await hosted.ask("shop")).text
    assert (await hosted.ask("shop", "/fork-and-terminate")).text == "-15"
    assert (await hosted.ask("shop")).text == before
