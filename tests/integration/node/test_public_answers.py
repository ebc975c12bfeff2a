"""What the public is told by a whole node, and what only the app's owner is."""

import errno
from pathlib import Path

import pytest
import uvloop

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb

from .conftest import Hosted, hosting

TEMPORARY = pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY)
TIERS = [pb.InstanceSpec.SHARED, pb.InstanceSpec.THREAD]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("entrypoint", "reason", "said"),
    [
        ("behaviours:raises_in_factory", "APP_FACTORY_FAILED", "the factory is broken"),
        ("behaviours:raises_in_startup", "APP_STARTUP_FAILED", "the startup is broken"),
    ],
)
async def test_what_a_failed_app_says_is_for_its_owner_alone(
    hosted: Hosted, tier: int, entrypoint: str, reason: str, said: str
) -> None:
    await hosted.start(entrypoint=entrypoint, isolation=tier, restart_policy=TEMPORARY)
    error = (await hosted.reaches(pb.Instance.FAILED)).last_error
    assert said in error.message
    answer = await hosted.ask("shop")
    assert (answer.status_code, answer.json()["reason"]) == (503, reason)
    assert "broken" not in answer.text


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("behaviour", ["cancels_itself", "sends_text"])
async def test_a_fault_of_an_app_has_one_verdict_in_each_tier(
    hosted: Hosted, tier: int, behaviour: str
) -> None:
    await hosted.start(entrypoint=f"behaviours:{behaviour}", isolation=tier)
    await hosted.reaches(pb.Instance.RUNNING)
    answer = await hosted.ask("shop")
    assert (answer.status_code, answer.json()["reason"]) == (500, "APP_RAISED")


async def test_a_start_that_lacks_descriptors_says_so(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(uvloop, "new_event_loop", none_left)
    await hosted.start(
        entrypoint="behaviours:ready", isolation=pb.InstanceSpec.THREAD, restart_policy=TEMPORARY
    )
    error = (await hosted.reaches(pb.Instance.FAILED)).last_error
    assert error.reason == "NODE_FULL"
    assert "ulimit" in error.message


async def test_a_cookie_that_was_narrowed_is_told_in_the_apps_log(hosted: Hosted) -> None:
    await hosted.start(entrypoint="behaviours:widens_its_cookie")
    await hosted.reaches(pb.Instance.RUNNING)
    assert (await hosted.ask("shop")).headers["set-cookie"] == "session=1"
    tail = hosted.stub.TailLogs(pb.TailLogsRequest(name="apps/shop"))
    entries = [entry async for entry in tail]
    assert "Set-Cookie had a Domain" in str(entries)


async def test_flags_say_which_hosts_find_apps_by_path(tmp_path: Path) -> None:
    async with hosting(tmp_path, path_host="node.internal") as hosted:
        await hosted.start(entrypoint="behaviours:ready")
        await hosted.reaches(pb.Instance.RUNNING)
        for host, status in (("node.internal", 200), ("evil.example", 421), ("127.0.0.1", 200)):
            answer = await hosted.http.get("/apps/shop/", headers={"Host": host})
            assert answer.status_code == status
