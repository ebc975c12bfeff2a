"""What no app in a shared process may do, because it would do it to all of them; each refusal says so.

Not a sandbox: code that means harm finds other ways. It keeps ordinary code from harming its neighbours.
"""

from __future__ import annotations

import asyncio
import locale
import os
import signal
from collections.abc import Callable
from typing import Any

from runtime_node.isolation.current import acting_instance

_INSTEAD = "run this app with isolation PROCESS"


class RefusedError(PermissionError):
    """Raised in an app that tries to change the whole process it shares with others."""


class RefusedSignalError(RefusedError, ValueError):
    """As `signal.signal` raises ValueError outside of the main thread, so code that expects that goes on."""


class RefusedLocaleError(RefusedError, locale.Error):
    """As `locale.setlocale` raises `locale.Error` for a locale that it cannot set."""


_REFUSED: tuple[tuple[Any, str, str, type[RefusedError]], ...] = (
    (os, "chdir", "change the working directory", RefusedError),
    (os, "fchdir", "change the working directory", RefusedError),
    (os, "chroot", "change the root directory", RefusedError),
    (os, "fork", "fork the process", RefusedError),
    (os, "forkpty", "fork the process", RefusedError),
    (os, "execv", "replace the process", RefusedError),
    (os, "execve", "replace the process", RefusedError),
    (os, "_exit", "end the process", RefusedError),
    (os, "abort", "end the process", RefusedError),
    (os, "setpgrp", "change the process group", RefusedError),
    (signal, "signal", "handle signals", RefusedSignalError),
    (signal, "alarm", "set the alarm", RefusedSignalError),
    (signal, "setitimer", "set the alarm", RefusedSignalError),
    (signal, "raise_signal", "send itself a signal", RefusedSignalError),
    (signal, "set_wakeup_fd", "handle signals", RefusedSignalError),
)


def install() -> None:
    """Put the refusals in place, for this process."""
    for module, name, what, fault in _REFUSED:
        if hasattr(module, name):
            setattr(module, name, _refusing(getattr(module, name), what, fault))
    set_locale = locale.setlocale

    def setlocale(category: int, locale: Any = None) -> str:
        if locale is not None and acting_instance():
            raise RefusedLocaleError(_sentence("set the locale"))
        return set_locale(category, locale)

    locale.setlocale = setlocale
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
    """Refuse `stop` and `close` of a shared loop to the apps that run on it."""
    for name, what in (
        ("stop", "stop the event loop"),
        ("close", "close the event loop"),
        ("shutdown_default_executor", "end the threads of the event loop"),
    ):
        setattr(loop, name, _refusing(getattr(loop, name), what, RefusedError))


def _refusing(original: Callable[..., Any], what: str, fault: type[RefusedError]) -> Callable[..., Any]:
    def refuse_or_call(*args: Any, **kwargs: Any) -> Any:
        if acting_instance():
            raise fault(_sentence(what))
        return original(*args, **kwargs)

    refuse_or_call.__name__ = getattr(original, "__name__", what)
    refuse_or_call.__doc__ = original.__doc__
    return refuse_or_call


def _sentence(what: str) -> str:
    return f"an app in a shared process cannot {what}; {_INSTEAD}"
