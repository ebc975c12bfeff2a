"""What the watchdog interrupts, and what it must not."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from runtime_node.isolation.current import CURRENT_INSTANCE
from runtime_node.watchdog.block import Block, Stage
from runtime_node.watchdog.watchdog import BlockPolicy, Watchdog
from tests.eventually import eventually_blocking


class LateThread(threading.Thread):
    """A thread that says only later that it runs, as on a machine that has no CPU for it yet."""

    def __init__(self, may_run: threading.Event) -> None:
        super().__init__(daemon=True)
        started = self._started  # type: ignore[has-type]

        class Started(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                return may_run.wait(timeout) and started.wait(timeout)

            def set(self) -> None:
                started.set()

        self._started = Started()

    def run(self) -> None:
        pass


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog()
    watchdog.start()
    yield watchdog
    watchdog.close()


def test_a_loop_that_waits_for_a_new_thread_is_not_interrupted(watchdog: Watchdog) -> None:
    blocks: list[Block] = []
    may_run, waits = threading.Event(), threading.Event()
    ended: list[BaseException | None] = []

    async def start_a_thread() -> None:
        CURRENT_INSTANCE.set("apps/a/instances/1")
        await asyncio.sleep(0.1)  # the watchdog has its first answer
        thread = LateThread(may_run)
        waits.set()
        thread.start()

    async def main() -> None:
        watchdog.watch(asyncio.get_running_loop())
        task = asyncio.create_task(start_a_thread())
        await asyncio.wait({task})
        ended.append(task.exception())

    policy = BlockPolicy(budget=0.05, on_block=blocks.append)
    watchdog.enter("apps/a/instances/1", policy)
    looks = 0
    judge = watchdog._judge

    def counted(*given: object) -> float:
        nonlocal looks
        looks += 1
        return judge(*given)  # type: ignore[arg-type]

    watchdog._judge = counted  # type: ignore[method-assign, assignment]
    loop = threading.Thread(target=asyncio.run, args=(main(),))
    loop.start()
    assert waits.wait(60)
    before = looks
    # Far beyond its budget: it was looked at again and again.
    eventually_blocking(lambda: looks > before + 40)
    # Nor is the little that follows, on a machine that is slow to run it.
    watchdog.leave("apps/a/instances/1", policy)
    may_run.set()
    loop.join(60)
    assert ended == [None]
    assert blocks == []


def test_code_that_blocks_its_loop_is_interrupted(watchdog: Watchdog) -> None:
    blocks: list[Block] = []
    ended: list[str] = []

    async def spin() -> None:
        CURRENT_INSTANCE.set("apps/a/instances/1")
        await asyncio.sleep(0.1)
        while True:
            pass

    async def main() -> None:
        watchdog.watch(asyncio.get_running_loop())
        task = asyncio.create_task(spin())
        await asyncio.wait({task})
        ended.append(type(task.exception()).__name__)

    watchdog.enter("apps/a/instances/1", BlockPolicy(budget=0.05, on_block=blocks.append))
    loop = threading.Thread(target=asyncio.run, args=(main(),))
    loop.start()
    loop.join(60)
    assert ended == ["RequestInterrupted"]
    assert eventually_blocking(lambda: blocks)[0].stage is Stage.BEGUN
