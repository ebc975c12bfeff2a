"""What no app in a shared process may do, because it would do it to all of them; each refusal says so.

Not a sandbox: code that means harm finds other ways. It keeps ordinary code from harming its neighbours.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import locale
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from runtime_node.isolation.current import acting_instance
from runtime_node.isolation.on_import import when_imported

_INSTEAD = "run this app with isolation PROCESS"
FORK = "fork the process"


class RefusedError(PermissionError):
    """Raised in an app that tries to change the whole process it shares with others."""


class RefusedSignalError(RefusedError, ValueError):
    """As `signal.signal` raises ValueError outside of the main thread, so code that expects that goes on."""


class RefusedLocaleError(RefusedError, locale.Error):
    """As `locale.setlocale` raises `locale.Error` for a locale that it cannot set."""


Concerns: TypeAlias = Callable[..., bool]
"""Tells from a call's arguments whether it is about the process itself; a child is an app's own affair."""


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


def _itself(process: int = 0, *args: Any, **kwargs: Any) -> bool:
    return process in {0, os.getpid()}


def _standard(descriptor: Any, *args: Any, **kwargs: Any) -> bool:
    return isinstance(descriptor, int) and 0 <= descriptor <= 2


def _onto_standard(source: int, target: int, *args: Any, **kwargs: Any) -> bool:
    return _standard(target)


def _from_standard(low: int, high: int) -> bool:
    return low <= 2 < high or 0 <= low <= 2


def _limits_itself(process: int, kind: int, limits: Any = None) -> bool:
    return limits is not None and _itself(process)


def _priority_of_itself(which: int, who: int, priority: int) -> bool:
    return which != os.PRIO_PROCESS or _itself(who)


_REFUSED: tuple[tuple[Any, str, str, type[RefusedError], Concerns], ...] = (
    *((os, name, "change the working directory", RefusedError, _always) for name in ("chdir", "fchdir")),
    (os, "chroot", "change the root directory", RefusedError, _always),
    *((os, name, FORK, RefusedError, _always) for name in ("fork", "forkpty")),
    *((os, name, "replace the process", RefusedError, _always) for name in ("execv", "execve")),
    *((os, name, "end the process", RefusedError, _always) for name in ("_exit", "abort")),
    (os, "setpgrp", "change the process group", RefusedError, _always),
    (os, "setsid", "change the process group", RefusedError, _always),
    (os, "setpgid", "change the process group", RefusedError, _itself),
    *(
        (os, name, "change the user that the process runs as", RefusedError, _always)
        for name in ("setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid",
                     "setresgid", "setgroups", "initgroups")
    ),
    *((os, name, "leave the process's namespaces", RefusedError, _always) for name in ("unshare", "setns")),
    (os, "nice", "change the priority of the process", RefusedError, _always),
    (os, "setpriority", "change the priority of the process", RefusedError, _priority_of_itself),
    *(
        (os, name, "change how the process is scheduled", RefusedError, _itself)
        for name in ("sched_setaffinity", "sched_setscheduler", "sched_setparam")
    ),
    (os, "dup2", "replace a standard descriptor of the process", RefusedError, _onto_standard),
    (os, "close", "close a standard descriptor of the process", RefusedError, _standard),
    (os, "closerange", "close a standard descriptor of the process", RefusedError, _from_standard),
    (os, "set_blocking", "change a standard descriptor of the process", RefusedError, _standard),
    *(
        (os, name, "change the environment past os.environ", RefusedError, _always)
        for name in ("putenv", "unsetenv")
    ),
    (resource, "setrlimit", "change the limits of the process", RefusedError, _always),
    (resource, "prlimit", "change the limits of the process", RefusedError, _limits_itself),
    *(
        (signal, name, "handle signals", RefusedSignalError, _always)
        for name in ("signal", "set_wakeup_fd", "siginterrupt", "pthread_sigmask")
    ),
    *((signal, name, "set the alarm", RefusedSignalError, _always) for name in ("alarm", "setitimer")),
    *(
        (signal, name, "send itself a signal", RefusedSignalError, _always)
        for name in ("raise_signal", "pthread_kill")
    ),
    *(
        (faulthandler, name, "set what the process does at a fault", RefusedError, _always)
        for name in ("enable", "disable", "register", "unregister", "dump_traceback_later",
                     "cancel_dump_traceback_later")
    ),
    (gc, "disable", "switch the garbage collector off", RefusedError, _always),
    (sys, "setrecursionlimit", "change the recursion limit", RefusedError, _always),
    (sys, "setswitchinterval", "change how threads take turns", RefusedError, _always),
    (sys, "set_int_max_str_digits", "change the limit of digits", RefusedError, _always),
    (sys, "addaudithook", "watch all that the process does", RefusedError, _always),
    *(
        (module, name, "trace or profile the threads of all", RefusedError, _always)
        for module, name in ((sys, "setprofile"), (sys, "settrace"), (threading, "setprofile"),
                             (threading, "settrace"), (threading, "setprofile_all_threads"),
                             (threading, "settrace_all_threads"))
    ),
)  # fmt: skip
_PROCESSES = {
    # Whatever starts a process of multiprocessing, before it makes a queue, a lock or a thread for it.
    "multiprocessing.process": ("BaseProcess.start",),
    "multiprocessing.pool": ("Pool.__init__",),
    "multiprocessing.managers": ("BaseManager.start",),
    "multiprocessing.resource_tracker": ("ResourceTracker.ensure_running",),
    "multiprocessing.forkserver": ("ForkServer.ensure_running",),
    "concurrent.futures.process": ("ProcessPoolExecutor.__init__",),
    "billiard.process": ("BaseProcess.start",),
}


_OF_A_PROCESS = {
    "nice": "change the priority of the process",
    "ionice": "change the priority of the process",
    "cpu_affinity": "change how the process is scheduled",
    "rlimit": "change the limits of the process",
}
"""Methods of `psutil.Process` that change something where they are given a new value."""


def install() -> None:
    """Put the refusals in place, for this process."""
    for module, name, what, fault, concerns in _REFUSED:
        if hasattr(module, name):
            setattr(module, name, _refusing(getattr(module, name), what, fault, concerns))
    for place, names in _PROCESSES.items():
        when_imported(place, _refuse_methods(names))
    when_imported("psutil", _refuse_changes_of_itself)
    _refuse_locales()
    _refuse_signals_to_itself()


def _refuse_methods(names: tuple[str, ...]) -> Callable[[Any], None]:
    def patch(module: Any) -> None:
        threads = getattr(module, "ThreadPool", ())
        for name in names:
            kind, method = name.split(".")
            owner = getattr(module, kind)

            def starts_processes(self: Any, *args: Any, **kwargs: Any) -> bool:
                return not isinstance(self, threads)

            setattr(owner, method, _refusing(getattr(owner, method), FORK, RefusedError, starts_processes))
            if kind == "Pool":
                owner._state = "INIT"  # what its finalizer looks at, also where it was never begun

    return patch


def _refuse_changes_of_itself(psutil: Any) -> None:
    for name, what in _OF_A_PROCESS.items():
        asks_with = 2 if name == "rlimit" else 1

        def changes(self: Any, *args: Any, asks_with: int = asks_with, **kwargs: Any) -> bool:
            return self.pid == os.getpid() and len(args) + len(kwargs) >= asks_with

        if hasattr(psutil.Process, name):
            original = getattr(psutil.Process, name)
            setattr(psutil.Process, name, _refusing(original, what, RefusedError, changes))


def _refuse_locales() -> None:
    set_locale = locale.setlocale

    def setlocale(category: int, locale: Any = None) -> str:
        if locale is not None and acting_instance():
            raise RefusedLocaleError(_sentence("set the locale"))
        return set_locale(category, locale)

    locale.setlocale = setlocale


def _refuse_signals_to_itself() -> None:
    kill, kill_group = os.kill, os.killpg

    def refusing_kill(pid: int, number: int) -> None:
        if pid in {os.getpid(), 0, -1, -os.getpgrp()} and number and acting_instance():
            raise RefusedError(_sentence("send itself a signal"))
        kill(pid, number)

    def refusing_kill_group(group: int, number: int) -> None:
        # A program that an app starts is in the node's group, unless it was given a session of its own.
        if group in {os.getpgrp(), 0} and number and acting_instance():
            raise RefusedError(_sentence("send a signal to the process group it shares"))
        kill_group(group, number)

    os.kill, os.killpg = refusing_kill, refusing_kill_group


def guard_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Refuse `stop` and `close` of a shared loop, and its signals, to the apps that run on it."""
    refused: tuple[tuple[str, str, type[RefusedError]], ...] = (
        ("stop", "stop the event loop", RefusedError),
        ("close", "close the event loop", RefusedError),
        ("shutdown_default_executor", "end the threads of the event loop", RefusedError),
        ("add_signal_handler", "handle signals", RefusedSignalError),
        ("remove_signal_handler", "handle signals", RefusedSignalError),
    )
    for name, what, fault in refused:
        setattr(loop, name, _refusing(getattr(loop, name), what, fault))


def _refusing(
    original: Callable[..., Any], what: str, fault: type[RefusedError], concerns: Concerns = _always
) -> Callable[..., Any]:
    process = os.getpid()

    def refuse_or_call(*args: Any, **kwargs: Any) -> Any:
        # A child that an app has started already is the app's own affair, as in `preexec_fn=os.setsid`.
        if _about_all(concerns, args, kwargs) and acting_instance() and os.getpid() == process:
            raise fault(_sentence(what))
        return original(*args, **kwargs)

    refuse_or_call.__name__ = getattr(original, "__name__", what)
    refuse_or_call.__doc__ = original.__doc__
    return refuse_or_call


def _about_all(concerns: Concerns, args: Any, kwargs: Any) -> bool:
    try:
        return concerns(*args, **kwargs)
    except TypeError:
        return False  # no such call exists: the original says so


def _sentence(what: str) -> str:
    return f"an app in a shared process cannot {what}; {_INSTEAD}"
