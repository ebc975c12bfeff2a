"""Looks at the disk: one for all who ask before it begins, none that holds anybody up."""

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.instances.code_on_disk import CodeOnDisk
from runtime_node.instances.record import CODE_CHANGED, Run
from runtime_node.loader.code_files import CodeState
from services.rpc.errors import SupervisorError
from tests.eventually import eventually

OLD = CodeState("a" * 64, 1_700_000_000_000_000_000)
NEW = CodeState("b" * 64, 1_700_000_001_000_000_000)


class Disk:
    """What looks find, and a gate that they wait at."""

    def __init__(self) -> None:
        self.looks: list[str] = []
        self.state: CodeState | Exception | None = OLD
        self.open = threading.Event()
        self.open.set()

    def look(self, entrypoint: str) -> CodeState | None:
        self.looks.append(entrypoint)
        assert self.open.wait(30)
        if isinstance(self.state, Exception):
            raise self.state
        return self.state


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.open.set()


def run_of(entrypoint: str, code: CodeState | None, tier: Any = pb.InstanceSpec.SHARED) -> Run:
    return Run(spec=pb.InstanceSpec(entrypoint=entrypoint), number=1, code=code, tier=tier)


def code_of(disk: Disk, runs: dict[str, Run] | None = None, seconds: float = 30.0) -> CodeOnDisk:
    found = {name: SimpleNamespace(run=run) for name, run in (runs or {}).items()}
    table: Any = SimpleNamespace(find=found.get)
    return CodeOnDisk(disk.look, table, seconds)


async def test_who_asks_before_a_look_begins_shares_it_and_who_asks_later_gets_a_new_one(disk: Disk) -> None:
    code = code_of(disk)
    disk.open.clear()
    first = asyncio.create_task(code.now("shop:app"))
    await eventually(lambda: disk.looks == ["shop:app"])
    # The look has begun: it may have missed what these know of.
    later = [asyncio.create_task(code.now("shop:app")) for _ in range(50)]
    await asyncio.sleep(0)
    disk.state = NEW
    disk.open.set()
    assert {await task for task in later} == {NEW}
    await first
    assert disk.looks == ["shop:app", "shop:app"]
    code.close()


async def test_thousands_of_apps_of_one_code_cost_one_look_and_only_others_are_told(disk: Disk) -> None:
    runs = {f"apps/a{number}/instances/i": run_of("shop:app", OLD) for number in range(3_000)}
    runs["apps/newest/instances/i"] = run_of("shop:app", NEW)
    disk.state = NEW
    code = code_of(disk, runs)
    messages = [pb.Instance(name=name) for name in (*runs, "apps/unknown/instances/i")]
    await code.tell(messages)
    assert disk.looks == ["shop:app"]
    assert all([one.type for one in message.conditions] == [CODE_CHANGED] for message in messages[:3_000])
    assert not any(message.conditions for message in messages[3_000:])
    told = messages[0].conditions[0]
    assert told.status == pb.Condition.MET
    assert told.message == (
        "The code on disk (bbbbbbbbbbbb, last changed 2023-11-14 22:13:21 UTC) is other than what runs"
        " (aaaaaaaaaaaa); RestartApp loads it."
    )
    code.close()


async def test_a_disk_that_hangs_holds_nobody_up(disk: Disk) -> None:
    disk.open.clear()
    name = "apps/shop/instances/i"
    code = code_of(disk, {name: run_of("shop:app", OLD)}, seconds=0.01)
    assert await code.now("shop:app") is None
    message = pb.Instance(name=name)
    await code.tell([message])
    assert not message.conditions
    code.close()


@pytest.mark.parametrize("state", [None, OSError("no"), SupervisorError("ENTRYPOINT_MALFORMED", "no")])
async def test_code_that_cannot_be_looked_at_is_not_told_of(disk: Disk, state: Exception | None) -> None:
    disk.state = state
    name = "apps/shop/instances/i"
    code = code_of(disk, {name: run_of("shop:app", OLD)})
    message = pb.Instance(name=name)
    await code.tell([message])
    assert not message.conditions
    code.close()
    assert await code.now("shop:app") is None


async def test_a_process_loads_an_installed_package_once_and_says_so(disk: Disk) -> None:
    code = code_of(disk)
    one, two = (
        CodeState(digit * 64, 1_700_000_000_000_000_000, True, f"shop {digit}") for digit in ("1", "2")
    )
    assert code.loaded(run_of("shop:app", one)) == one
    # After an upgrade of the package, what this process has stays; a process of its own has the new one.
    assert code.loaded(run_of("shop:app", two)) == one
    assert code.loaded(run_of("shop:app", two, pb.InstanceSpec.PROCESS)) == two
    code.close()
    disk.state = two
    for tier, remedy in (
        (pb.InstanceSpec.SHARED, "it is loaded when the node is started anew"),
        (pb.InstanceSpec.PROCESS, "RestartApp loads it"),
    ):
        name = "apps/shop/instances/i"
        telling = code_of(disk, {name: run_of("shop:app", one, tier)})
        message = pb.Instance(name=name, isolation=tier)
        await telling.tell([message])
        assert remedy in message.conditions[0].message
        telling.close()
