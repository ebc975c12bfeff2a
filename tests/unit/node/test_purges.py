"""Removals of apps' data: each is told once, however often it is asked for."""

import logging
from pathlib import Path

import pytest

from runtime_node.instances.databases import Databases
from runtime_node.instances.purges import Purges


async def test_a_removal_that_is_asked_for_again_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    databases = Databases(tmp_path)
    databases.directory("shop", "u1").mkdir(parents=True)

    async def remove_log(app: str, uid: str) -> None:
        pass

    purges = Purges(databases, remove_log)
    with caplog.at_level(logging.INFO, "runtime_node.instances"):
        for _ in range(2):
            purges.ask("shop", "u1")
            assert await purges.carry_out("shop", "u1") is None
    assert [record.__dict__["action"] for record in caplog.records] == ["app.purged"]
    assert not databases.directory("shop", "u1").exists()
