"""The ASGI lifespan, one test per outcome."""

import asyncio
from typing import Any

import pytest

from runtime_node.tiers.lifespan import Lifespan
from services.rpc.errors import SupervisorError


async def test_startup_and_shutdown_run_in_turn_and_state_is_kept() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        scope["state"]["db"] = "open"
        await send({"type": "lifespan.startup.complete"})
        seen.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    lifespan = Lifespan(app)
    await lifespan.startup()
    assert lifespan.supported
    assert lifespan.state == {"db": "open"}
    assert await lifespan.shutdown(1) is None
    assert seen == ["lifespan.startup", "lifespan.shutdown"]
    assert lifespan.task is None


async def raises_at_once(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("http only")


async def returns_at_once(scope: Any, receive: Any, send: Any) -> None:
    return


async def returns_after_the_startup_message(scope: Any, receive: Any, send: Any) -> None:
    await receive()


@pytest.mark.parametrize("app", [raises_at_once, returns_at_once, returns_after_the_startup_message])
async def test_an_app_that_knows_no_lifespan_is_fine(app: Any) -> None:
    lifespan = Lifespan(app)
    await lifespan.startup()
    assert not lifespan.supported
    assert await lifespan.shutdown(1) is None


async def test_a_startup_that_raises_has_failed_with_its_traceback() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ValueError("no database hunter2")

    with pytest.raises(SupervisorError) as failed:
        await Lifespan(app, secrets=("hunter2",)).startup()
    assert failed.value.reason == "APP_STARTUP_FAILED"
    assert failed.value.message == "The app's startup failed: ValueError: no database ***"
    assert "raise ValueError" in failed.value.metadata["detail"]
    assert "hunter2" not in failed.value.metadata["detail"]


async def test_a_startup_that_awaits_what_was_cancelled_has_failed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise asyncio.CancelledError

    with pytest.raises(SupervisorError, match="cancelled from within"):
        await Lifespan(app).startup()


async def test_a_startup_that_says_it_failed_has_failed_with_what_it_said() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "Traceback\n  ...\nOSError: full"})

    with pytest.raises(SupervisorError) as failed:
        await Lifespan(app).startup()
    assert failed.value.message == "The app's startup failed: OSError: full"
    assert failed.value.metadata["detail"].startswith("Traceback")


async def test_what_an_app_says_of_its_failure_is_told_without_secrets() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": f"Traceback\n{'x' * 297}hunter2hunter2"})

    with pytest.raises(SupervisorError) as failed:
        await Lifespan(app, secrets=("hunter2hunter2",)).startup()
    assert "hun" not in failed.value.message
    assert "hun" not in failed.value.metadata["detail"]


async def test_a_failed_startup_leaves_no_task_even_if_the_app_waits_on() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "x"})
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    with pytest.raises(SupervisorError):
        await Lifespan(app).startup()
    assert asyncio.all_tasks() == before


async def test_a_cancelled_startup_leaves_no_task() -> None:
    began, cleaned = asyncio.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    before = asyncio.all_tasks()
    starting = asyncio.create_task(Lifespan(app).startup())
    await began.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert cleaned == [True]
    await asyncio.sleep(0)  # what was cancelled last ends in the loop's next turn
    assert asyncio.all_tasks() == before


async def started(at_shutdown: Any) -> Lifespan:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await at_shutdown(send)

    lifespan = Lifespan(app)
    await lifespan.startup()
    return lifespan


async def test_a_shutdown_that_raises_is_told() -> None:
    async def at_shutdown(send: Any) -> None:
        raise RuntimeError("stuck valve")

    error = await (await started(at_shutdown)).shutdown(1)
    assert error is not None
    assert (error.reason, error.message) == (
        "APP_SHUTDOWN_FAILED",
        "The app's shutdown failed: RuntimeError: stuck valve",
    )


async def test_a_shutdown_that_says_it_failed_is_told() -> None:
    async def at_shutdown(send: Any) -> None:
        await send({"type": "lifespan.shutdown.failed", "message": "stuck valve"})

    error = await (await started(at_shutdown)).shutdown(1)
    assert error is not None
    assert "stuck valve" in error.message


async def test_a_shutdown_that_takes_too_long_is_cut_off() -> None:
    async def at_shutdown(send: Any) -> None:
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    lifespan = await started(at_shutdown)
    error = await lifespan.shutdown(0.01)
    assert error is not None
    assert "longer than 0.01 s" in error.message
    assert asyncio.all_tasks() == before


async def test_a_lifespan_that_ended_early_needs_no_shutdown() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.sleep(0)

    lifespan = Lifespan(app)
    await lifespan.startup()
    for _ in range(3):  # in which the app ends
        await asyncio.sleep(0)
    assert await lifespan.shutdown(1) is None


async def test_a_message_out_of_its_turn_is_refused_to_the_app() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start"})

    with pytest.raises(SupervisorError, match="out of its turn"):
        await Lifespan(app).startup()
