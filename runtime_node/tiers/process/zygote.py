"""The node's handle on its zygote, and the program that the zygote is (`python -m` this module).

Always started by executing a fresh interpreter: so it has one thread by construction, however many
its node has.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import logging
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime_node.memory import ARENAS
from runtime_node.tiers.process import cgroups, procfs, wire
from runtime_node.tiers.process.cgroups import GuestGroups

_logger = logging.getLogger(__name__)

READY_SECONDS: Final = 60.0
RELAUNCH_SECONDS: Final = (0.0, 0.2, 1.0, 5.0)
"""Delay before the nth relaunch in a row; the last one holds for all further."""
BURIAL_SECONDS: Final = 5.0
"""How long a lost zygote's guests may take to be gone after they were killed."""
LOOK_SECONDS: Final = 0.005

CORE_PRELOAD: Final = (
    "runtime_node.tiers.process.guest", "uvloop", "httptools", "asyncio", "encodings.idna",
    "concurrent.futures.thread", "email.parser", "http.cookies", "json", "logging.config", "sqlite3", "ssl",
    "uuid", "decimal", "multiprocessing.util", "urllib.request",
)  # fmt: skip
OPTIONAL_PRELOAD: Final = (
    "anyio", "anyio._backends._asyncio", "starlette.applications", "starlette.responses",
    "starlette.staticfiles", "starlette.websockets", "pydantic", "fastapi", "fastapi.openapi.utils",
    "fastapi.responses", "sqlalchemy", "sqlalchemy.orm", "sqlalchemy.dialects.sqlite", "sqlmodel",
    "markupsafe", "runtime_node.tiers.process.preload",
)  # fmt: skip


def default_preload() -> tuple[str, ...]:
    """Return the modules most guests need, as far as they are installed."""
    found = [name for name in OPTIONAL_PRELOAD if _installed(name)]
    return (*CORE_PRELOAD, *found)


def _installed(name: str) -> bool:
    root = name.partition(".")[0]
    return root in sys.modules or importlib.util.find_spec(root) is not None


def base_environment(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what of the node's environment any process may see: nothing of its settings or secrets."""
    source = os.environ if source is None else source
    wanted = ("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
    kept = {name: source[name] for name in wanted if name in source}
    kept.update({name: value for name, value in source.items() if name.startswith("LC_")})
    kept.setdefault("PATH", os.defpath)
    return kept


@dataclass(frozen=True, slots=True)
class Ended:
    """How a guest's process ended."""

    status: int
    """As of wait(2)."""
    strays: int = 0
    """Descendants that were still alive and were killed."""
    oom_kills: int = 0
    """Processes the kernel killed for memory on this machine during the guest's life."""
    zygote_lost: bool = False


@dataclass(slots=True)
class _Expected:
    spawned: asyncio.Future[tuple[int, int]]
    on_exit: Callable[[Ended], None]
    tag: int
    group: Path | None = None
    joining: asyncio.Task[None] | None = None
    pid: int | None = None


class Zygote:
    """One zygote after another, and the guests it forked.

    `launch` may be called before any loop runs; `attach` binds it to the control loop, and everything
    else is called there, on the main thread (a death signal is bound to the thread that launched).
    """

    def __init__(self, app_dirs: Sequence[Path], preload: Sequence[str]) -> None:
        # Guests run in their data directories.
        self._app_dirs = tuple(directory.absolute() for directory in app_dirs)
        self._preload = list(preload)
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None
        self._expected: dict[int, _Expected] = {}
        self._serial = 0
        # 24 bits for the serial, 30 for this node's life: the marks of two nodes on a machine differ.
        self._first_tag = (1 << 60) | (random.getrandbits(30) << 24)
        self._own_group = cgroups.own_group()
        self._groups: GuestGroups | None = None
        self._failures = 0
        self._closing = False
        self._relaunching: asyncio.TimerHandle | None = None
        self._burials: set[asyncio.Task[None]] = set()

    @classmethod
    def launch(cls, app_dirs: Sequence[Path] = (), preload: Sequence[str] | None = None) -> Zygote:
        """Start a zygote and return at once; it loads its modules meanwhile.

        `preload` None takes what is installed of the usual frameworks. Raises OSError.
        """
        zygote = cls(app_dirs, default_preload() if preload is None else (*CORE_PRELOAD, *preload))
        zygote._start()
        return zygote

    @property
    def pid(self) -> int | None:
        """Process id of the present zygote."""
        return None if self._process is None else self._process.pid

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind to the control loop. Repeats do nothing."""
        if self._loop is None:
            self._loop = loop
            self._listen()

    async def ready(self) -> None:
        """Wait until the zygote can fork; a relaunch under way is waited for too."""
        self.attach(asyncio.get_running_loop())
        async with asyncio.timeout(READY_SECONDS):
            while True:
                assert self._ready is not None
                waiting = self._ready
                await asyncio.shield(waiting)
                if waiting is self._ready:
                    return

    async def spawn(
        self, name: str, descriptors: Sequence[int], on_exit: Callable[[Ended], None], max_tasks: int
    ) -> tuple[int, int, int]:
        """Fork a guest; return (serial, pid, pidfd). The caller owns the pidfd and closes `descriptors`.

        Where the kernel counts them, the guest gets no more than `max_tasks` processes and threads.

        `on_exit` is called once, on the control loop, when the process is gone and nothing of it is
        left. Raises OSError when the machine has no process to give, ConnectionError when the zygote
        died meanwhile; then, and when cancelled, the guest is gone or about to be.
        """
        await self.ready()
        assert self._loop is not None
        assert self._link is not None
        self._serial += 1
        serial, tag = self._serial, self._first_tag + self._serial
        group = None if self._groups is None else self._groups.make(str(serial), max_tasks)
        expected = _Expected(self._loop.create_future(), on_exit, tag, group)
        self._expected[serial] = expected
        message = {"op": "spawn", "serial": serial, "tag": tag, "name": name[:64]}
        try:
            wire.send(self._link, message, descriptors)
            pid, pidfd = await expected.spawned
        except (wire.ClosedError, OSError) as error:
            self._expected.pop(serial, None)
            if group is not None:
                cgroups.remove(group)
            if isinstance(error, (wire.ClosedError, BlockingIOError)):
                raise ConnectionError("the zygote does not take requests") from error
            raise
        except asyncio.CancelledError:
            expected.spawned.cancel()
            self.kill(serial)
            raise
        if group is not None:
            expected.joining = self._loop.create_task(_join(group, pid, pidfd))
        return serial, pid, pidfd

    async def joined(self, serial: int) -> None:
        """Wait until a guest is in its group, if it has one; it loads its app meanwhile."""
        expected = self._expected.get(serial)
        if expected is not None and expected.joining is not None:
            await asyncio.wait({expected.joining})

    def kill(self, serial: int) -> None:
        """Kill a guest and all its descendants; `on_exit` follows. Does nothing for one that is gone."""
        expected = self._expected.get(serial)
        if expected is None:
            return
        if expected.group is not None:
            cgroups.kill(expected.group)
        if self._link is None:
            return
        with contextlib.suppress(wire.ClosedError, BlockingIOError):
            wire.send(self._link, {"op": "kill", "serial": serial})

    def tag_of(self, serial: int) -> int:
        """Return the mark of a guest's processes."""
        return self._first_tag + serial

    async def close(self) -> None:
        """End the zygote and every guest there still is. Repeats do nothing."""
        self._closing = True
        if self._relaunching is not None:
            self._relaunching.cancel()
        self._stop_listening()
        if self._burials:
            await asyncio.wait(self._burials)
        process, self._process = self._process, None
        if process is None:
            return
        groups, self._groups = self._groups, None
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, process.wait, 5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            await loop.run_in_executor(None, process.wait)
        if groups is not None:
            await loop.run_in_executor(None, cgroups.end, groups.root)

    def _start(self) -> None:
        ours, theirs = wire.pair()
        command = [
            sys.executable, "-P", "-m", __spec__.name, "--fd", str(theirs.fileno()),
            "--node-pid", str(os.getpid()), "--preload", ",".join(self._preload),
        ]  # fmt: skip
        for directory in self._app_dirs:
            command += ["--app-dir", str(directory)]
        self._groups = GuestGroups.open(self._own_group)
        if self._groups is not None:
            command += ["--guest-groups", str(self._groups.root)]
        environment = base_environment()
        # What the interpreter itself needs to find the same code; removed again in each guest.
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["MALLOC_ARENA_MAX"] = str(ARENAS)
        for name in ("PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH"):
            if name in os.environ:
                environment[name] = os.environ[name]
        try:
            self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
                command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._link = ours

    def _listen(self) -> None:
        assert self._loop is not None
        assert self._link is not None
        if self._ready is None or self._ready.done():
            self._ready = self._loop.create_future()
        self._loop.add_reader(self._link.fileno(), self._read)

    def _stop_listening(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            if self._loop is not None:
                self._loop.remove_reader(link.fileno())
            link.close()

    def _read(self) -> None:
        while self._link is not None:
            try:
                message, descriptors = wire.receive(self._link)
            except BlockingIOError:
                return
            except (wire.ClosedError, wire.WireError):
                self._lost()
                return
            self._handle(message, descriptors)

    def _handle(self, message: dict[str, Any], descriptors: list[int]) -> None:
        match message["op"]:
            case "ready":
                self._failures = 0
                assert self._ready is not None
                if not self._ready.done():
                    self._ready.set_result(None)
                enforced = "nothing" if self._groups is None else self._groups.enforced
                facts = {"action": "zygote.ready", "pid": message["pid"], "control_groups": enforced}
                _logger.info("zygote ready", extra=facts)
            case "unfit":
                self._preload.remove(message["module"])
                _logger.warning(
                    "a preloaded module starts threads, so each guest imports it itself",
                    extra={"action": "zygote.unfit", "module": message["module"]},
                )
            case "spawned":
                self._spawned(message, descriptors)
            case "refused":
                expected = self._expected.pop(message["serial"], None)
                if expected is not None and expected.group is not None:
                    cgroups.remove(expected.group)
                if expected is not None and not expected.spawned.done():
                    expected.spawned.set_exception(OSError(message["message"]))
            case "exited":
                expected = self._expected.pop(message["serial"], None)
                if expected is not None:
                    kept = {key: message[key] for key in ("status", "strays", "oom_kills")}
                    self._tell_exit(expected, Ended(**kept))

    def _tell_exit(self, expected: _Expected, ended: Ended, deadline: float | None = None) -> None:
        """Tell of a guest's end once its group is empty: whatever left the marks behind is in there still."""
        assert self._loop is not None
        if expected.group is not None:
            cgroups.kill(expected.group)
            deadline = self._loop.time() + cgroups.END_SECONDS if deadline is None else deadline
            if cgroups.is_populated(expected.group) and self._loop.time() < deadline:
                self._loop.call_later(LOOK_SECONDS, self._tell_exit, expected, ended, deadline)
                return
            cgroups.remove(expected.group)
        expected.on_exit(ended)

    def _spawned(self, message: dict[str, Any], descriptors: list[int]) -> None:
        expected = self._expected.get(message["serial"])
        if expected is None or expected.spawned.done():
            for descriptor in descriptors:
                os.close(descriptor)
            return
        expected.pid = message["pid"]
        expected.spawned.set_result((message["pid"], descriptors[0]))

    def _lost(self) -> None:
        """Take the death of the zygote: its guests die with it, a new one is started."""
        self._stop_listening()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        orphans, self._expected = self._expected, {}
        groups, self._groups = self._groups, None
        assert self._loop is not None
        last_tag = self._first_tag + self._serial
        burial = self._loop.create_task(self._bury(orphans.values(), last_tag, groups))
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)
        if self._closing:
            return
        delay = RELAUNCH_SECONDS[min(self._failures, len(RELAUNCH_SECONDS) - 1)]
        self._failures += 1
        _logger.error(
            "zygote lost", extra={"action": "zygote.lost", "guests": len(orphans), "relaunch_seconds": delay}
        )
        if self._ready is None or self._ready.done():
            self._ready = self._loop.create_future()
        self._relaunching = self._loop.call_later(delay, self._relaunch)

    async def _bury(self, orphans: Iterable[_Expected], last_tag: int, groups: GuestGroups | None) -> None:
        """Kill a lost zygote's guests and tell of each once nothing of them is left."""
        if groups is not None:
            await asyncio.to_thread(cgroups.end, groups.root)
        assert self._loop is not None
        deadline = self._loop.time() + BURIAL_SECONDS
        # Until none is found, as one may fork between two looks, and as a killed process takes a moment to
        # end: told too early, its successor would write the same database beside it.
        while left := procfs.kill_marked(range(self._first_tag, last_tag + 1)):
            if self._loop.time() > deadline:
                _logger.error(
                    "guests cannot be killed", extra={"action": "zygote.burial", "pids": sorted(left)}
                )
                break
            await asyncio.sleep(LOOK_SECONDS)
        for expected in orphans:
            _reap(expected.pid)
            if not expected.spawned.done():
                expected.spawned.set_exception(ConnectionError("the zygote died"))
            else:
                expected.on_exit(Ended(status=9, zygote_lost=True))

    def _relaunch(self) -> None:
        if self._closing:
            return
        try:
            self._start()
        except OSError as error:
            self._failures += 1
            _logger.error("zygote not started", extra={"action": "zygote.relaunch", "error": error.strerror})
            assert self._loop is not None
            self._relaunching = self._loop.call_later(RELAUNCH_SECONDS[-1], self._relaunch)
        else:
            self._listen()


async def _join(group: Path, pid: int, pidfd: int) -> None:
    # A guest that ends meanwhile gives its number back; whoever had it next would be in a group to be killed.
    if await asyncio.to_thread(cgroups.join, group, pid):
        try:
            signal.pidfd_send_signal(pidfd, 0)
        except OSError:
            await asyncio.to_thread(cgroups.join, group.parent.parent, pid)


def _reap(pid: int | None) -> None:
    # Only where this node is the reaper of orphans (process 1 of a container) are they its children.
    if pid is not None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def pipe() -> tuple[int, int]:
    """Return a pipe whose read end doesn't block, roomy enough for a burst of output."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    with contextlib.suppress(OSError):  # beyond the user's share of pipe memory the default size has to do
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 18)
    return read, write


if __name__ == "__main__":
    from runtime_node.tiers.process.zygote_server import main

    main()
