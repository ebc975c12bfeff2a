"""The Envoy that the gateway runs is started again, whatever has ended it or kept it from starting."""

from __future__ import annotations

import asyncio
import errno
import shutil
from typing import Any
from unittest.mock import patch

from services.gateway import envoy as module
from services.gateway.envoy import Envoy
from tests.eventually import eventually


async def test_an_envoy_that_cannot_be_started_now_is_started_later_with_its_settings() -> None:
    real, refusals = asyncio.create_subprocess_exec, 2

    async def spawn(*arguments: Any, **options: Any) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.EAGAIN, "no process to be had")
        return await real(*arguments, **options)

    envoy = Envoy("/bin/cat", node_id="envoy-1", xds_address="127.0.0.1:1")
    shutil.rmtree(envoy.admin.path.parent)  # as what tidies /tmp up does
    with (
        patch.object(asyncio, "create_subprocess_exec", spawn),
        patch.object(module, "FIRST_DELAY", 0),
    ):
        envoy.start()
        await eventually(lambda: envoy.starts, lambda starts: starts >= 2)
        assert (envoy.admin.path.parent / "bootstrap.json").exists()
        await envoy.stop(0)
    assert not envoy.admin.path.parent.exists()
