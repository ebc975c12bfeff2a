"""Careless apps beside others in one node: what they do to the process is kept from the others, and told."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from tests.eventually import WITHIN

from .conftest import Hosted, hosting

NEIGHBOUR = "apps/neighbour/instances/a1"
TIERS = [pb.InstanceSpec.SHARED, pb.InstanceSpec.THREAD]
CARELESS = """
import socket, ssl, sys, io, logging
from urllib.parse import parse_qsl
def create_app(context):
    if context.config.get("at") == "start":
        ssl._create_default_https_context = ssl._create_unverified_context
        socket.setdefaulttimeout(3)
    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError
        what = scope["path"][1:]
        if what == "timeout":
            socket.setdefaulttimeout(3)
        elif what == "pool":
            import multiprocessing
            multiprocessing.get_context("spawn").Pool(1)
        elif what == "logging":
            logging.disable(logging.CRITICAL)
            logging.getLogger().handlers.clear()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
    return app
"""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Hosted]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/careless.py").write_text(CARELESS)
    async with hosting(tmp_path, app_dir=str(tmp_path / "code")) as subject:
        yield subject


async def meets(node: Hosted, condition: Callable[[pb.Instance], bool]) -> pb.Instance:
    async with asyncio.timeout(WITHIN):
        async for message in node.watch():
            if message.instance.name == "apps/shop/instances/a1" and condition(message.instance):
                return message.instance
    raise AssertionError("the stream ended")


def restored(instance: pb.Instance) -> str:
    told = [c for c in instance.conditions if c.type == "SharedStateRestored"]
    return told[0].message if told and told[0].status == pb.Condition.MET else ""


@pytest.mark.parametrize("tier", TIERS)
async def test_what_a_factory_changes_for_all_is_put_back_when_it_has_started(
    node: Hosted, tier: pb.InstanceSpec.IsolationTier.ValueType
) -> None:
    await node.start(
        entrypoint="careless:create_app",
        isolation=tier,
        config={"at": "start"},
        name="apps/shop/instances/a1",
    )
    told = await meets(node, lambda instance: bool(restored(instance)))
    assert restored(told) == (
        "Put back what it had changed for all apps of its process: socket.setdefaulttimeout, "
        "ssl._create_default_https_context."
    )
    assert told.health == pb.Instance.HEALTHY
    assert socket.getdefaulttimeout() is None
    assert ssl._create_default_https_context is ssl.create_default_context


async def test_what_a_request_changes_for_all_is_put_back_within_a_second_and_told_once(node: Hosted) -> None:
    await node.start(entrypoint="careless:create_app", name=NEIGHBOUR, app_uid="other")
    await node.reaches(pb.Instance.RUNNING, NEIGHBOUR)
    await node.start(entrypoint="careless:create_app")
    assert not restored(await node.reaches(pb.Instance.RUNNING))
    await node.ask("neighbour")
    await node.ask("shop", "/timeout")
    told = await meets(node, lambda instance: bool(restored(instance)))
    assert socket.getdefaulttimeout() is None
    assert not restored(await node.get(NEIGHBOUR))
    await node.restart()
    again = await meets(node, lambda i: i.state == pb.Instance.RUNNING and i.restart_count == 1)
    assert not restored(again), told


async def test_a_pool_of_processes_is_refused_and_leaves_nothing_behind(node: Hosted) -> None:
    await node.start(entrypoint="careless:create_app")
    await node.reaches(pb.Instance.RUNNING)
    threads = {thread.name for thread in threading.enumerate()}
    assert (await node.ask("shop", "/pool")).status_code == 500
    assert {thread.name for thread in threading.enumerate()} <= threads


async def test_an_app_that_silences_logging_silences_itself(
    node: Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    await node.start(entrypoint="careless:create_app")
    await node.reaches(pb.Instance.RUNNING)
    await node.ask("shop", "/logging")
    with caplog.at_level(logging.INFO, logger="runtime_node.instances"):
        await node.stop()
        await node.is_gone()
    assert any(record.action == "instance.gone" for record in caplog.records if hasattr(record, "action"))
