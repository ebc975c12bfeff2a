"""What an app does to the process is seen by it alone where that can be, undone at its stop, or refused."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import logging
import logging.config
import logging.handlers
import os
import queue
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from runtime_node.isolation import install, running_as, tasks_of
from runtime_node.isolation.contain import AppExitError, ContainedApp
from runtime_node.isolation.current import CURRENT_INSTANCE
from runtime_node.isolation.environ import open_overlay
from runtime_node.isolation.lasting import LastingInterruption
from runtime_node.isolation.undo_log import undo, undo_log_of
from tests.eventually import WITHIN, eventually_blocking

ME = "apps/me/instances/1"
OTHER = "apps/other/instances/1"


@pytest.fixture(autouse=True)
def _seams() -> Iterator[None]:
    install()
    yield
    undo(ME)
    undo(OTHER)


@pytest.fixture
def uninterrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing end but by itself: what does not is named as left behind."""
    monkeypatch.setattr(LastingInterruption, "raise_if_due", lambda _: None)


def test_a_thread_an_app_started_counts_as_its_own_and_so_does_what_that_starts() -> None:
    seen: list[str] = []

    def outer() -> None:
        seen.append(CURRENT_INSTANCE.get())
        inner = threading.Thread(target=lambda: seen.append(CURRENT_INSTANCE.get()))
        inner.start()
        inner.join()

    with running_as(ME):
        thread = threading.Thread(target=outer)
        thread.start()
    thread.join()
    assert seen == [ME, ME]


def test_a_python_thread_left_by_an_app_is_ended() -> None:
    def spin() -> None:
        while True:
            time.sleep(0.001)

    with running_as(ME):
        thread = threading.Thread(target=spin, daemon=True)
        thread.start()
    assert undo(ME, grace=2.0) == []
    assert not thread.is_alive()


def test_a_thread_that_cannot_be_ended_is_named_with_its_place() -> None:
    release = threading.Event()
    lock = threading.Lock()
    lock.acquire()

    def stuck_here() -> None:
        lock.acquire()
        release.set()

    with running_as(ME):
        thread = threading.Thread(target=stuck_here, name="sleeper", daemon=True)
        thread.start()
    leaks = undo(ME, grace=0.1)
    assert len(leaks) == 1
    assert "'sleeper'" in leaks[0]
    assert "stuck_here" in leaks[0]
    assert __file__ in leaks[0]
    lock.release()
    eventually_blocking(lambda: not thread.is_alive())


@pytest.mark.usefixtures("uninterrupted")
def test_executors_and_timers_of_an_app_end_at_once() -> None:
    with running_as(ME):
        executor = concurrent.futures.ThreadPoolExecutor(2)
        executor.submit(int).result()
        timer = threading.Timer(3600, int)
        timer.start()
    assert undo(ME, grace=WITHIN) == []
    assert not timer.is_alive()


def test_a_handler_is_taken_off_its_logger_and_closed() -> None:
    closed = []

    class Handler(logging.Handler):
        def close(self) -> None:
            closed.append(1)
            super().close()

    handler = Handler()
    with running_as(ME):
        logging.getLogger("shared").addHandler(handler)
        assert handler in logging.getLogger("shared").handlers
    assert undo(ME) == []
    with running_as(ME):
        assert handler not in logging.getLogger("shared").handlers
    assert closed == [1]


def test_an_app_that_configures_logging_leaves_the_others_handlers_and_loggers_alone() -> None:
    others, root = logging.StreamHandler(), logging.getLogger()
    logging.getLogger("neighbour").addHandler(others)
    root.addHandler(others)
    level = root.level
    try:
        with running_as(ME):
            logging.config.dictConfig(
                {
                    "version": 1,
                    "handlers": {"mine": {"class": "logging.StreamHandler"}},
                    "root": {"handlers": ["mine"], "level": "DEBUG"},
                    "disable_existing_loggers": True,
                }
            )
            assert len(root.handlers) >= 2
        assert others in root.handlers
        assert others in logging.getLogger("neighbour").handlers
        assert not logging.getLogger("neighbour").disabled
        assert undo(ME) == []
        assert root.level == level
        assert others in root.handlers
    finally:
        root.removeHandler(others)
        logging.getLogger("neighbour").removeHandler(others)


def test_a_level_that_an_app_sets_is_its_own_and_goes_with_it() -> None:
    root, library = logging.getLogger(), logging.getLogger("shared.library")
    before = library.isEnabledFor(logging.INFO), library.isEnabledFor(logging.DEBUG)
    open_overlay(ME, parent="code/mine")
    with running_as("code/mine"):
        root.setLevel(logging.ERROR)
    with running_as(ME):
        assert not library.isEnabledFor(logging.WARNING)
        library.setLevel("DEBUG")
        assert library.isEnabledFor(logging.DEBUG)
        assert library.getEffectiveLevel() == logging.DEBUG
        assert root.getEffectiveLevel() == logging.ERROR
    with running_as(OTHER):
        assert (library.isEnabledFor(logging.INFO), library.isEnabledFor(logging.DEBUG)) == before
        library.setLevel(logging.CRITICAL)
    undo(ME)  # while another one has set the same
    with running_as(OTHER):
        assert not library.isEnabledFor(logging.ERROR)
    undo(OTHER)
    undo("code/mine")
    with running_as(ME):
        assert (library.isEnabledFor(logging.INFO), library.isEnabledFor(logging.DEBUG)) == before


def test_a_factory_of_log_records_makes_those_of_its_app_alone() -> None:
    heard: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.msg = f"mine: {record.msg}"
        return record

    logger = logging.Logger("shared")
    logger.addHandler(Handler())
    with running_as(ME):
        before = logging.getLogRecordFactory()
        logging.setLogRecordFactory(make)
        assert logging.getLogRecordFactory() is make
        logger.warning("one")
    with running_as(OTHER):
        logger.warning("two")
    logger.warning("three")
    undo(ME)
    with running_as(ME):
        logger.warning("four")
    assert heard == ["mine: one", "two", "three", "four"]


def test_exit_hooks_run_when_the_instance_stops_newest_first() -> None:
    ran: list[int] = []

    def fails() -> None:
        raise RuntimeError

    with running_as(ME):
        atexit.register(ran.append, 1)
        atexit.register(ran.append, 2)
        atexit.register(fails)
        gone = atexit.register(lambda: ran.append(9))
        atexit.unregister(gone)
    leaks = undo(ME)
    assert ran == [2, 1]
    assert len(leaks) == 1
    assert "fails raised RuntimeError" in leaks[0]


def test_a_handler_of_an_app_hears_what_the_app_logs_and_nobody_else() -> None:
    heard: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    open_overlay(ME, parent="code/mine")
    location, instance = Handler(), Handler()
    with running_as("code/mine"):
        logging.getLogger().addHandler(location)
    with running_as(ME):
        logging.getLogger().addHandler(instance)
        logging.getLogger("mine").warning("mine")
    with running_as(OTHER):
        logging.getLogger("other").warning("a neighbour's")
    logging.getLogger("node").warning("the node's")
    undo(ME)
    undo("code/mine")
    assert heard == ["mine", "mine"]


@pytest.mark.usefixtures("uninterrupted")
def test_an_exit_hook_may_end_the_threads_of_its_app() -> None:
    """As the listener of a logging queue does, which waits where no exception reaches it."""
    with running_as(ME):
        listener = logging.handlers.QueueListener(queue.SimpleQueue())
        listener.start()
        atexit.register(listener.stop)
    assert undo(ME, grace=WITHIN) == []


FINALIZERS = """
import tempfile
from pathlib import Path
from runtime_node.isolation import install, running_as
from runtime_node.isolation.undo_log import undo
install()
with running_as("apps/me/instances/1"):
    mine = tempfile.TemporaryDirectory()
with running_as("apps/other/instances/1"):
    others = tempfile.TemporaryDirectory()
assert undo("apps/me/instances/1") == []
assert Path(others.name).is_dir()
"""


def test_the_first_finalizer_of_the_process_does_not_end_those_of_others() -> None:
    """In a process of its own: in this one somebody was the first long ago."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", FINALIZERS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_exit_hook_that_never_returns_is_cut_off_and_named() -> None:
    release = threading.Event()
    with running_as(ME):
        atexit.register(release.wait, 2 * WITHIN)
    leaks = undo(ME, grace=0.2)
    assert "'exit hooks' still runs" in leaks[0]
    release.set()


def test_environment_variables_an_app_sets_are_its_own_and_go_with_it() -> None:
    os.environ["SHARED_WORD"] = "node"
    try:
        with running_as(ME):
            os.environ["SHARED_WORD"] = "mine"
            os.environ.setdefault("OWN_WORD", "x")
            assert os.getenv("SHARED_WORD") == "mine"
            assert dict(os.environ)["OWN_WORD"] == "x"
        with running_as(OTHER):
            assert os.environ["SHARED_WORD"] == "node"
            assert "OWN_WORD" not in os.environ
            del os.environ["SHARED_WORD"]
            assert "SHARED_WORD" not in os.environ
            assert "SHARED_WORD" not in list(os.environ)
        assert os.environ["SHARED_WORD"] == "node"
        assert len(os.environ) == len(list(os.environ))
        undo(ME)
        with running_as(ME):
            assert "OWN_WORD" not in os.environ
    finally:
        del os.environ["SHARED_WORD"]


def test_an_instance_sees_the_environment_it_was_given_and_its_codes() -> None:
    open_overlay("code/x")
    with running_as("code/x"):
        os.environ["FROM_CODE"] = "1"
    open_overlay(ME, parent="code/x", env={"GIVEN": "2"})
    with running_as(ME):
        assert (os.environ["FROM_CODE"], os.environ["GIVEN"]) == ("1", "2")
    undo("code/x")


@pytest.mark.parametrize("fault", [SystemExit(3), KeyboardInterrupt()])
async def test_an_app_that_wants_to_exit_fails_its_own_request_alone(fault: BaseException) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert CURRENT_INSTANCE.get() == ME
        raise fault

    with pytest.raises(AppExitError):
        await ContainedApp(app, ME)({"type": "http"}, None, None)  # type: ignore[arg-type]
    assert CURRENT_INSTANCE.get() == ""


async def test_tasks_are_told_apart_by_the_instance_that_made_them() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    async def spawn() -> asyncio.Task[None]:
        return asyncio.create_task(wait())

    with running_as(ME):
        mine = await spawn()
        grandchild = await asyncio.create_task(spawn(), context=contextvars.copy_context())
    with running_as(OTHER):
        others = await spawn()
    try:
        assert set(tasks_of(asyncio.get_running_loop(), ME)) == {mine, grandchild}
        assert set(tasks_of(asyncio.get_running_loop(), OTHER)) == {others}
    finally:
        for task in (mine, grandchild, others):
            task.cancel()
        await asyncio.gather(mine, grandchild, others, return_exceptions=True)


def test_warning_filters_of_an_app_go_with_it() -> None:
    before = list(warnings.filters)
    with running_as(ME):
        warnings.filterwarnings("ignore", message="of mine")
        warnings.filterwarnings("ignore", message="of mine")
    assert len(warnings.filters) == len(before) + 1
    undo(ME)
    assert list(warnings.filters) == before


def test_a_warning_filter_that_all_have_stays_where_it_was_beside_an_apps_own() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for message in ("of all", "of all others"):
            warnings.filterwarnings("ignore", message=message)
        before = list(warnings.filters)
        with running_as(ME):
            warnings.filterwarnings("ignore", message="of all")
            warnings.filterwarnings("error", message="mine", append=True)
            warnings.filterwarnings("ignore", message="of all")
        assert list(warnings.filters)[1:-1] == before
        assert len(undo_log_of(ME)) == 2
        undo(ME)
        assert list(warnings.filters) == before


def test_a_warning_filter_of_an_app_decides_about_its_own_warnings_alone() -> None:
    open_overlay(OTHER, parent="code/others")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with running_as(ME):
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="not this", append=False)
            with pytest.raises(UserWarning):
                warnings.warn("mine", stacklevel=1)
            warnings.warn("not this one", stacklevel=1)
        with running_as("code/others"):
            warnings.filterwarnings("ignore", message="silent")
        with running_as(OTHER):
            warnings.warn("another's", stacklevel=1)
            warnings.warn("silent", stacklevel=1)
        warnings.warn("silent", stacklevel=1)
        assert [str(each.message) for each in told] == ["another's", "silent"]
        undo("code/others")


def test_what_an_app_takes_back_itself_leaves_no_entry() -> None:
    handler = logging.NullHandler()
    with running_as(ME):
        for _ in range(1_000):
            logging.getLogger("busy").addHandler(handler)
            logging.getLogger("busy").removeHandler(handler)
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
    assert len(undo_log_of(ME)) <= 1  # that it has settings of logging, once
