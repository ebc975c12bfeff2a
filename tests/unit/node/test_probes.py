"""What one probe makes of an app's answer, and that whatever it is another one follows."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from runtime_node.instances import probes
from runtime_node.instances.probes import Probes, ask
from runtime_node.instances.record import Run
from runtime_node.watchdog.interruption import RequestInterrupted
from services.rpc.errors import SupervisorError
from services.spec.effective import EffectiveHealthCheck
from tests.eventually import eventually


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ValueError(), "it raised ValueError"),
        (asyncio.CancelledError(), "it raised CancelledError"),
        (BaseExceptionGroup("", [GeneratorExit()]), "it raised BaseExceptionGroup"),
        (RequestInterrupted(), "it blocked its event loop"),
        (BaseExceptionGroup("", [RequestInterrupted()]), "it blocked its event loop"),
    ],
)
async def test_whatever_an_app_raises_is_its_answer(fault: BaseException, told: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise fault

    assert await ask(app, "/", "a.localhost", 5) == told


async def test_an_app_that_does_not_answer_in_time_is_told_so() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    assert await ask(app, "/", "a.localhost", 0.01) == "no answer within 0.01 s"


async def test_a_probe_that_is_given_up_ends() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    probe = asyncio.ensure_future(ask(app, "/", "a.localhost", 5))
    await asyncio.sleep(0)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe


@pytest.mark.parametrize(
    "fault",
    [SupervisorError("APP_BLOCKED_LOOP", "It was interrupted."), asyncio.CancelledError(), TimeoutError()],
)
async def test_a_probe_that_is_broken_off_is_a_failure_and_not_the_last_one(
    monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    asked: list[int] = []

    async def run_on(loop: asyncio.AbstractEventLoop, work: Any) -> str | None:
        work.close()
        asked.append(len(asked))
        if len(asked) == 1:
            raise fault
        return None

    monkeypatch.setattr(probes, "run_on", run_on)
    health: list[int] = []
    run = Run(InstanceSpec(), 1)
    run.running = cast(Any, SimpleNamespace(asgi=None))
    watched = Probes(
        asyncio.get_running_loop(), "localhost", lambda _: health.append(run.probe.health if run.probe else 0)
    )
    check = EffectiveHealthCheck("/", 0.001, 1.0, success_threshold=1, failure_threshold=1)
    watched.add(cast(Any, SimpleNamespace(app="a")), run, check)
    await eventually(lambda: len(asked) > 1 and len(health) > 1)
    await watched.close()
    assert health == [Instance.Health.UNHEALTHY, Instance.Health.HEALTHY]
