"""The logs of the node's apps: which log a line belongs to, where it is kept, when it is forgotten."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from runtime_node.context import AppContext
from runtime_node.logs.capture import Capture
from runtime_node.logs.entries import Entry
from runtime_node.logs.files import AppLog
from runtime_node.logs.writer import Account, Channel, LogWriter
from runtime_node.removal import finish_removals

log = logging.getLogger("runtime_node.logs")

CUT_BYTES = 16 * 1024
"""Length of a piece of a longer line, as the PROCESS tier cuts it."""


class LogSource(NamedTuple):
    """An instance as far as its log is concerned."""

    app: str
    uid: str
    secrets: tuple[str, ...]


class Counts(NamedTuple):
    """Lines of one app since the node began to hear it."""

    lines: int
    dropped: int


class AppLogs:
    """All logs of one node. `find` tells who an instance is, None for none that is here; on any thread."""

    def __init__(
        self,
        directory: Path,
        find: Callable[[str], LogSource | None],
        *,
        echo: Callable[[str, Entry], None] | None = None,
        **bounds: int,
    ) -> None:
        self._directory = directory.resolve()
        self._find = find
        self._bounds = bounds
        self._channels: dict[str, Channel] = {}
        self._accounts: dict[tuple[str, str], Account] = {}
        # Held for a moment when an instance is first heard or ends; a line that comes later needs none.
        self._lock = threading.RLock()
        self._cut: set[tuple[str, str]] = set()
        self._capture = Capture(self.write)
        self._writer = LogWriter(
            None if echo is None else lambda app_log, entry: echo(_app_of(app_log), entry),
            self._capture.settle,
        )
        self.lost = 0
        """Lines of instances that are not here any more."""

    def start(self) -> None:
        """Begin to take what instances print and log in this process."""
        self._writer.start()
        self._capture.install()

    async def close(self) -> None:
        """Put the process's streams back, write what is queued, close the files."""
        self._capture.remove()
        await asyncio.to_thread(self._writer.close)
        for account in self._accounts.values():
            account.log.end()

    # --- lines, from any thread ---

    def write(
        self,
        instance: str,
        level: int,
        source: str,
        text: str,
        *,
        when: float | None = None,
        begins_cut: bool = False,
        ends_cut: bool = False,
    ) -> None:
        """Take one line of an instance. Any thread; never waits, never raises."""
        channel = self._channels.get(instance) or self._open(instance)
        if channel is None:
            self.lost += 1
            return
        self._writer.put(
            channel, level, source, text, when=when, begins_cut=begins_cut, ends_cut=ends_cut
        )  # fmt: skip

    def output(self, context: AppContext, stream: str, line: str) -> None:
        """Take a line that an instance in a process of its own has written."""
        key = (context.instance, stream)
        begins_cut, ends_cut = key in self._cut, len(line) >= CUT_BYTES // 4 and _is_full(line)
        if ends_cut:
            self._cut.add(key)
        elif begins_cut:
            self._cut.discard(key)
        level = logging.INFO if stream == "stdout" else logging.WARNING
        self.write(context.instance, level, stream, line, begins_cut=begins_cut, ends_cut=ends_cut)

    def write_fault(self, instance: str, stack: str) -> None:
        """Take the traceback of an exception that left an app."""
        self.write(instance, logging.ERROR, "node", stack.rstrip())

    def _open(self, instance: str) -> Channel | None:
        try:
            source = self._find(instance)
            if source is None:
                return None
            with self._lock:
                channel = self._channels.get(instance)
                if channel is None:
                    account = self._account(source.app, source.uid)
                    channel = self._channels[instance] = Channel(instance, account, source.secrets)
                    account.channels += 1
        except Exception:
            log.exception("an app's log cannot be opened", extra={"action": "logs.open_failed"})
            return None
        return channel

    def _account(self, app: str, uid: str) -> Account:
        account = self._accounts.get((app, uid))
        if account is None:
            account = Account(AppLog(self._path(app, uid), **self._bounds))
            self._accounts[app, uid] = account
        return account

    # --- the control loop's ---

    async def open_log(self, app: str, uid: str, listener: Callable[[], None]) -> AppLog:
        """Return an app's log, complete up to now, for a reader that `close_log`s it. Raises OSError."""
        with self._lock:
            account = self._account(app, uid)
            account.log.listeners.add(listener)
        try:
            self._capture.settle()
            await asyncio.wrap_future(self._writer.call(account.log.load))
        except BaseException:
            self.close_log(app, uid, listener)
            raise
        return account.log

    def close_log(self, app: str, uid: str, listener: Callable[[], None]) -> None:
        """Note that a reader is done."""
        with self._lock:
            account = self._accounts.get((app, uid))
            if account is not None:
                account.log.listeners.discard(listener)
        self._release(app, uid)

    async def written(self) -> None:
        """Wait until all lines that came before are in their logs."""
        self._capture.settle()
        await asyncio.wrap_future(self._writer.call(lambda: None))

    def newest_uid(self, app: str) -> str:
        """Return the uid of the app of that name whose log was begun last, or "". Blocks on the disk."""
        if not self._directory.is_dir():
            return ""
        found = [path for path in self._directory.iterdir() if path.name.rpartition(".")[0] == app]
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        return "" if newest is None else newest.name.rpartition(".")[2]

    def has_log(self, app: str, uid: str) -> bool:
        """Tell whether anything of an app is kept. Blocks on the disk."""
        return (app, uid) in self._accounts or self._path(app, uid).is_dir()

    def forget(self, instance: str, app: str, uid: str) -> None:
        """Release what is held in memory for an instance that does not run any more; its log stays."""
        self._capture.settle(instance)
        self._cut.difference_update({(instance, "stdout"), (instance, "stderr")})
        with self._lock:
            channel = self._channels.pop(instance, None)
            if channel is not None:
                channel.account.channels -= 1
        if channel is not None:
            self._release(app, uid)

    def _release(self, app: str, uid: str) -> None:
        """Forget an app's log, after its last lines, if nobody needs it."""

        def release() -> None:
            with self._lock:
                account = self._accounts.get((app, uid))
                if account is None or account.channels or account.log.listeners:
                    return
                del self._accounts[app, uid]
            self._writer.settle(account)
            account.log.end()

        self._writer.call(release)

    async def purge(self, app: str, uid: str) -> None:
        """Remove an app's log. Raises OSError."""
        with self._lock:
            account = self._account(app, uid)
            del self._accounts[app, uid]
            for instance in [n for n, channel in self._channels.items() if channel.account is account]:
                del self._channels[instance]
        await asyncio.wrap_future(self._writer.call(account.log.purge))

    def finish_purges(self) -> None:
        """Remove what a purge left that was cut short by the end of the process. Blocks on the disk."""
        finish_removals(self._directory)

    def counts(self, app: str, uid: str) -> Counts:
        """Return how much an app has logged. Any thread."""
        account = self._accounts.get((app, uid))
        return Counts(0, 0) if account is None else Counts(account.accepted, account.dropped)

    def _path(self, app: str, uid: str) -> Path:
        path = self._directory / f"{app}.{uid}"
        if path.parent != self._directory or path.name != f"{app}.{uid}" or not app or not uid:
            raise ValueError(f"{app!r} and {uid!r} do not name a directory")
        return path


def _app_of(app_log: AppLog) -> str:
    return app_log.directory.name.rpartition(".")[0]


def _is_full(line: str) -> bool:
    return len(line.encode("utf-8", "replace")) >= CUT_BYTES
