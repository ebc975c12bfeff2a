"""What each instance did to the process, and how to undo it. The patches in `patches` write it.

One entry per thing, not per call: what an app does and takes back by itself leaves no entry behind.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence

from runtime_node.isolation.endings import end_threads
from runtime_node.isolation.environ import close_overlay

Undo = Callable[[], str | None]
"""Takes one effect back; returns a sentence if something stays, and may raise."""

EXIT_HOOK = "atexit"
"""First part of the key of an exit hook."""

_lock = threading.Lock()
_undo_logs: dict[str, UndoLog] = {}


class UndoLog:
    """The side effects of one instance, or of one code location while it was imported."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self._lock = threading.Lock()
        self._entries: dict[Hashable, Undo] = {}
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def record(self, key: Hashable, undo: Undo) -> None:
        """Note an effect, unless one of the same key is noted already: the first knows how it was before."""
        with self._lock:
            self._entries.setdefault(key, undo)

    def forget(self, key: Hashable) -> bool:
        """Drop an entry that the app has taken back itself; tell whether there was one."""
        with self._lock:
            return self._entries.pop(key, None) is not None

    def forget_all(self, start: tuple[Hashable, ...]) -> bool:
        """Drop all entries whose key begins so; tell whether there was one."""
        with self._lock:
            keys = [key for key in self._entries if isinstance(key, tuple) and key[: len(start)] == start]
            for key in keys:
                del self._entries[key]
            return bool(keys)

    def record_thread(self, thread: threading.Thread) -> None:
        """Note a thread that the app starts."""
        with self._lock:
            self._threads.add(thread)

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries) + sum(thread.is_alive() for thread in self._threads)

    def undo(self, grace: float) -> list[str]:
        """Take everything back, newest first, in at most about `grace` seconds; return what stays."""
        deadline = time.monotonic() + grace
        with self._lock:
            threads = [thread for thread in self._threads if thread.is_alive()]
            hooks = [undo for key, undo in self._entries.items() if _is_hook(key)]
            entries = [undo for key, undo in self._entries.items() if not _is_hook(key)]
            self._entries.clear()
            self._threads.clear()
        left: list[str] = []
        if hooks:
            # As at an interpreter's end they find the app's threads alive, for some of them end those. They
            # are the app's code and may wait for ever: in a thread that can be ended with the others.
            runner = threading.Thread(target=_take_back, args=(hooks, left), name="exit hooks", daemon=True)
            runner.start()
            runner.join(grace / 2)
            threads.insert(0, runner)
        # Before the rest: threads may still use what the entries take away.
        left += end_threads([t for t in threads if t.is_alive()], max(0.0, deadline - time.monotonic()))
        _take_back(entries, left)
        return left


def _is_hook(key: Hashable) -> bool:
    return isinstance(key, tuple) and key[0] == EXIT_HOOK


def _take_back(entries: Sequence[Undo], left: list[str]) -> None:
    for undo in reversed(entries):
        try:
            sentence = undo()
        except BaseException as fault:  # noqa: BLE001 - an app's own hook may fail; the rest is undone all the same
            sentence = f"undoing a side effect raised {type(fault).__name__}"
        if sentence is not None:
            left.append(sentence)


def undo_log_of(instance: str) -> UndoLog:
    """Return the undo log of an instance, a new one if it has none."""
    with _lock:
        undo_log = _undo_logs.get(instance)
        if undo_log is None:
            undo_log = _undo_logs[instance] = UndoLog(instance)
        return undo_log


def undo(instance: str, grace: float = 1.0) -> list[str]:
    """Take back what the instance did, and close its undo log. Blocks for at most about `grace` seconds.

    Returns a sentence for each thing that stays. Repeats do nothing.
    """
    with _lock:
        undo_log = _undo_logs.pop(instance, None)
    left = [] if undo_log is None else undo_log.undo(grace)
    close_overlay(instance)
    return left
