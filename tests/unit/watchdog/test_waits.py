"""Waits on a thread that runs an event loop: in slices, and without missing what they wait for."""

import threading
import time

import pytest

from runtime_node.watchdog import waits
from tests.eventually import WITHIN


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have conditions wait in slices until the test is over."""
    monkeypatch.setattr(threading.Condition, "wait", threading.Condition.wait)
    waits._slice_condition()


@pytest.mark.usefixtures("sliced")
async def test_a_notification_between_two_slices_is_not_missed() -> None:
    condition = threading.Condition()
    told = []

    def notify() -> None:
        with condition:
            # The waiter's slice ends meanwhile, and it wants the lock back.
            time.sleep(3 * waits.SLICE)
            told.append(condition.notify())

    with condition:
        thread = threading.Thread(target=notify)
        thread.start()
        assert condition.wait(WITHIN)
    thread.join()
    assert told == [None]


@pytest.mark.usefixtures("sliced")
async def test_a_sliced_wait_ends_at_its_timeout_and_leaves_no_waiter() -> None:
    condition = threading.Condition()
    with condition:
        assert not condition.wait(2.5 * waits.SLICE)
        assert not condition._waiters  # type: ignore[attr-defined]


@pytest.mark.usefixtures("sliced")
async def test_waiting_without_the_lock_is_refused() -> None:
    with pytest.raises(RuntimeError, match="un-acquired"):
        threading.Condition().wait(1)
