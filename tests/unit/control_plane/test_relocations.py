"""The operations that move many apps are looked at as soon as they are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from appsupervisor.fleet.v1.fleet_pb2 import DrainNodeMetadata, RebalanceEnvironmentMetadata
from services.control_plane.controller.relocations import Relocations
from services.control_plane.fleet.relocations import Step
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import FLEET_VERBS, OperationRecord, Version
from tests.eventually import eventually


@pytest.mark.parametrize("verb", FLEET_VERBS)
async def test_one_that_has_just_begun_is_brought_on_by_the_change_that_tells_of_it(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, looked = Mirror(), []

    def write(command: Callable[[Any], Any]) -> Future[Any]:
        looked.append(command)
        done: Future[Any] = Future()
        done.set_result(Step())
        return done

    kind = DrainNodeMetadata if verb == "drain" else RebalanceEnvironmentMetadata
    operation = OperationRecord(
        "operations/1", "environments/x", "", verb, Version(0, 0), kind(verb=verb), create_time=0, deadline=1
    )
    following = asyncio.create_task(Relocations(mirror, write).run())
    try:
        await asyncio.sleep(0)
        # The feed of operations is published after that of the apps, which wakes: here it never comes.
        monkeypatch.setattr(mirror.operations, "publish", lambda *_: None)
        mirror.apply(1, operations=[(operation.name, operation)])
        await eventually(lambda: looked)
    finally:
        following.cancel()
