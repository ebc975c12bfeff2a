"""What an instance tells of its code, in each tier: what it has loaded, and that the disk has other code."""

import os
from pathlib import Path

import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.instances.record import CODE_CHANGED
from runtime_node.tiers.process.zygote import Zygote

from .conftest import Hosted, hosting

SOURCE = """
def create_app(context):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%s"})
    return app
"""
TIERS = {name: pb.InstanceSpec.IsolationTier.Value(name) for name in ("SHARED", "THREAD", "PROCESS")}


def changed(instance: pb.Instance) -> str:
    return next((one.message for one in instance.conditions if one.type == CODE_CHANGED), "")


async def test_all_tiers_tell_the_same_digest_and_what_has_changed_until_a_restart_loads_it(
    tmp_path: Path,
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "shop.py").write_text(SOURCE % "one")
    os.utime(code / "shop.py", (1_700_000_000, 1_700_000_000))
    zygote = Zygote.launch([code])
    async with hosting(tmp_path, zygote, app_dir=str(code)) as node:
        await zygote.ready()
        names = {tier: f"apps/{tier.lower()}/instances/i" for tier in TIERS}
        digests = set()
        for number, (tier, name) in enumerate(names.items()):
            fields = {"name": name, "app_uid": f"uid-{number}", "isolation": TIERS[tier]}
            await node.start(**fields, entrypoint="shop:create_app")
            running = await node.reaches(pb.Instance.RUNNING, name)
            digests.add(running.code.digest)
            assert running.code.modify_time.seconds == 1_700_000_000
            assert not running.code.distribution
            assert not running.code.partial
            assert not changed(await node.get(name))
        assert len(digests) == 1
        (code / "shop.py").write_text(SOURCE % "two")
        listed = (await node.stub.ListInstances(pb.ListInstancesRequest(parent="apps/-"))).instances
        assert len(listed) == len(TIERS)
        for instance in (*listed, await node.get(names["THREAD"])):
            assert "RestartApp loads it" in changed(instance)
            assert instance.code.digest in digests
        for tier, name in names.items():
            await node.restart(name, request_id="again")
            await node.reaches(pb.Instance.RUNNING, name)
            restarted = await node.get(name)
            assert restarted.code.digest not in digests
            assert not changed(restarted)
            assert (await node.ask(tier.lower())).text == "two"


@pytest.mark.parametrize("gone", ["dormant", "failed"])
async def test_what_has_no_code_loaded_tells_of_none(tmp_path: Path, gone: str) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "shop.py").write_text(SOURCE % "one" if gone == "dormant" else "raise ValueError")
    async with hosting(tmp_path, app_dir=str(code)) as node:
        await sleeping_or_failed(node, gone)
        (code / "shop.py").write_text(SOURCE % "two")
        instance = await node.get()
        assert not instance.HasField("code")
        assert not changed(instance)


async def sleeping_or_failed(node: Hosted, gone: str) -> None:
    if gone == "dormant":
        await node.start(entrypoint="shop:create_app", activation=pb.InstanceSpec.ON_REQUEST)
        return
    policy = pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY)
    await node.start(entrypoint="shop:create_app", restart_policy=policy)
    await node.reaches(pb.Instance.FAILED)
