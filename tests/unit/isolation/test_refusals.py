"""What would change the whole process is refused to apps with a way out, and to nobody else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import faulthandler
import gc
import locale
import multiprocessing.managers
import multiprocessing.pool
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from runtime_node.isolation import guard_loop, running_as
from runtime_node.isolation.refusals import RefusedError

OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)


def of_a_tracer(frame: Any, event: str, argument: Any) -> None: ...


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: os.chdir("/"), PermissionError),
        (lambda: os.fork(), PermissionError),  # noqa: PLW0108 - the patch is looked up at the call
        (lambda: os.execv("/bin/true", ["true"]), PermissionError),
        (lambda: os.execlp("true", "true"), PermissionError),
        (lambda: os._exit(1), PermissionError),
        (lambda: os.abort(), PermissionError),  # noqa: PLW0108
        (lambda: os.setsid(), PermissionError),  # noqa: PLW0108
        (lambda: os.setpgid(0, 0), PermissionError),
        (lambda: os.setuid(os.getuid()), PermissionError),
        (lambda: os.nice(1), PermissionError),
        (lambda: os.setpriority(os.PRIO_PROCESS, 0, 1), PermissionError),
        (lambda: os.sched_setaffinity(0, {0}), PermissionError),
        (lambda: os.dup2(3, 1), PermissionError),
        (lambda: os.close(2), PermissionError),
        (lambda: os.closerange(0, 100), PermissionError),
        (lambda: os.set_blocking(1, False), PermissionError),
        (lambda: os.putenv("A", "b"), PermissionError),
        (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, OPEN_FILES), PermissionError),
        (lambda: resource.prlimit(0, resource.RLIMIT_NOFILE, OPEN_FILES), PermissionError),
        (lambda: psutil.Process().nice(1), PermissionError),
        (lambda: psutil.Process().rlimit(resource.RLIMIT_NOFILE, OPEN_FILES), PermissionError),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), PermissionError),
        (lambda: os.kill(-os.getpgrp(), signal.SIGTERM), PermissionError),
        (lambda: os.killpg(os.getpgrp(), signal.SIGTERM), PermissionError),
        (lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN), ValueError),
        (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}), ValueError),
        (lambda: signal.alarm(1), ValueError),
        (lambda: locale.setlocale(locale.LC_ALL, "C"), locale.Error),
        (lambda: faulthandler.enable(), PermissionError),  # noqa: PLW0108
        (lambda: gc.disable(), PermissionError),  # noqa: PLW0108
        (lambda: sys.setrecursionlimit(10_000), PermissionError),
        (lambda: sys.setswitchinterval(1), PermissionError),
        (lambda: sys.set_int_max_str_digits(0), PermissionError),
        (lambda: sys.addaudithook(print), PermissionError),
        (lambda: sys.settrace(of_a_tracer), PermissionError),
        (lambda: sys.setprofile(of_a_tracer), PermissionError),
        (lambda: threading.settrace(of_a_tracer), PermissionError),
        (lambda: threading.setprofile(of_a_tracer), PermissionError),
    ],
)
def test_what_would_change_the_whole_process_is_refused_with_a_way_out(
    me: str, call: Callable[[], Any], expected: type[BaseException]
) -> None:
    with running_as(me), pytest.raises(expected, match="isolation PROCESS") as caught:
        call()
    assert isinstance(caught.value, RefusedError)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(
    "start",
    [
        lambda context: context.Pool(1),
        lambda context: context.Process(target=int).start(),
        lambda context: context.Manager(),
        lambda context: multiprocessing.pool.Pool(1, context=context),
        lambda context: concurrent.futures.ProcessPoolExecutor(1, context),
    ],
)
def test_no_way_of_multiprocessing_to_start_a_process_is_open(
    me: str, method: str, start: Callable[[Any], Any]
) -> None:
    before = set(psutil.Process().children()), set(threading.enumerate())
    sentence = r"cannot fork the process; .* isolation PROCESS"
    with running_as(me), pytest.raises(RefusedError, match=sentence):
        start(multiprocessing.get_context(method))
    # Not even the helpers that the library starts for a process, which would outlive the app.
    assert (set(psutil.Process().children()), set(threading.enumerate())) == before


def test_a_pool_of_threads_and_a_program_are_an_apps_own_affair(me: str) -> None:
    with running_as(me):
        with multiprocessing.pool.ThreadPool(1) as pool:
            assert pool.apply(int) == 0
        child = subprocess.Popen(["sleep", "60"], preexec_fn=os.setsid)  # noqa: PLW1509 - apps do
        os.setpriority(os.PRIO_PROCESS, child.pid, 5)
        assert psutil.Process(child.pid).nice() == 5
        child.kill()
        child.wait()
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.close(read)
        os.close(write)
        assert resource.prlimit(0, resource.RLIMIT_NOFILE) == OPEN_FILES
        asyncio.run(asyncio.sleep(0))


def test_the_node_itself_is_refused_nothing(me: str) -> None:
    here = os.getcwd()
    os.chdir(here)
    os.kill(os.getpid(), 0)
    sys.setswitchinterval(sys.getswitchinterval())
    assert locale.setlocale(locale.LC_CTYPE)


def test_an_app_cannot_stop_or_close_the_loop_it_shares(me: str) -> None:
    loop = asyncio.new_event_loop()
    guard_loop(loop)
    with running_as(me):
        for call in (loop.stop, loop.close, loop.shutdown_default_executor):
            with pytest.raises(RefusedError, match="event loop"):
                call()
        with pytest.raises(ValueError, match="handle signals"):
            loop.add_signal_handler(signal.SIGTERM, print)
    loop.close()
    assert loop.is_closed()
