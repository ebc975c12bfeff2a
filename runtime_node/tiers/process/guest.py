"""One guest: from the fork to the exit of a process that runs one app.

Puts on its limits and environment, loads the app, runs its lifespan, serves it, and tells its node how
that went. Exchanges are `serving`'s, loading is the loader's.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import json
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple, TextIO

import uvloop

from runtime_node.context import AppContext
from runtime_node.loader import LoadedCode, Loader
from runtime_node.memory import give_back_zeros
from runtime_node.raised import traceback_of
from runtime_node.tiers.lifespan import Lifespan
from runtime_node.tiers.process import procfs, rlimits, serving, wire
from runtime_node.tiers.process.beat import Beat
from runtime_node.tiers.process.guest_signals import DUMP_SIGNAL, INTERRUPT_SIGNAL
from runtime_node.tiers.process.output import MAX_RECORD_CHARACTERS
from services.rpc.errors import SupervisorError

EXIT_START_FAILED: Final = 71
MAX_DETAIL_BYTES: Final = 16 << 10
NO_RUNNING_LOOP: Final = "no running event loop"
"""What asyncio says where there is none."""
LOOP_MODULES: Final = frozenset({"uvloop.loop", "asyncio.unix_events"})
"""Where the handlers are from that an event loop puts on signals."""


class Descriptors(NamedTuple):
    """The open files that a guest is given, in the order of the spawn message."""

    parcel: int
    control: int
    stdout: int
    stderr: int
    log: int
    beat: int
    stack: int


def main(descriptors: Descriptors, tag: int, name: str, app_dirs: Sequence[str]) -> None:
    """Be a guest. Called in the fresh child of the zygote; ends by `os._exit` alone."""
    zygote = os.getppid()
    os.setsid()
    procfs.prctl(procfs.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:
        os._exit(0)
    procfs.set_name(f"app:{name}")
    _reset_signals()
    kept = _settle_descriptors(descriptors)
    parcel = wire.open_parcel(kept.parcel)
    _settle_environment(parcel, tag)
    faulthandler.enable(file=2, all_threads=True)
    faulthandler.register(DUMP_SIGNAL, file=kept.stack, all_threads=True, chain=False)
    guest = Guest(kept, parcel, app_dirs)
    status = guest.run()
    _leave(status)


def _reset_signals() -> None:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ):
            with contextlib.suppress(OSError, ValueError):  # those glibc keeps to itself
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _settle_descriptors(given: Descriptors) -> Descriptors:
    """Put the standard streams in place and close everything else that was inherited."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (given.stdout, 1), (given.stderr, 2)):
        os.dup2(source, target, inheritable=True)
    kept = sorted(set(given) - {given.stdout, given.stderr})
    low = 3
    for descriptor in kept:
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
    # Made anew: what the zygote's streams found out about their files at their birth no longer holds.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _writer(1)
    sys.stderr = _writer(2)
    return given._replace(stdout=1, stderr=2)


def _writer(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _settle_environment(parcel: dict[str, Any], tag: int) -> None:
    os.environ.clear()
    os.environ.update(parcel["environment"])
    time.tzset()
    os.umask(0o077)
    rlimits.apply(rlimits.Rlimits.of(parcel["limits"]), tag)
    os.chdir(parcel["context"]["data_dir"])
    sys.argv = [parcel["entrypoint"]]
    random.seed()


def _leave(status: int) -> None:
    """Do what an interpreter's end does for an app, without tearing down what is shared with the zygote."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # ends executors; waits for non-daemon threads
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(status)


class Guest:
    """The app's side of the process: what it was told to run and its link to the node."""

    def __init__(self, descriptors: Descriptors, parcel: dict[str, Any], app_dirs: Sequence[str]) -> None:
        self._parcel = parcel
        self._app_dirs = [Path(directory) for directory in app_dirs]
        self._control = socket.socket(fileno=descriptors.control)
        self._control.setblocking(False)
        self._beat = Beat(descriptors.beat, parcel["beat_seconds"])
        os.close(descriptors.beat)
        self._context = self._build_context(parcel["context"])
        self._secrets = self._context.hidden
        self._loader = Loader(self._app_dirs, plain=True, secrets=self._secrets)
        self._server: serving.Server | None = None
        self._stopping: asyncio.Event | None = None
        self._stop_timeout = float(parcel["stop_timeout"])
        handler = _NodeLogHandler(descriptors.log)
        root = logging.getLogger()
        root.handlers[:] = [handler]
        # As in the other tiers; `logging.basicConfig` of an app would not lower it, for the handler is there.
        root.setLevel(logging.INFO)
        self._context.logger.setLevel(logging.DEBUG)
        logging.captureWarnings(False)

    def run(self) -> int:
        """Run the app from import to the end of its lifespan; return the exit status."""
        loop = asyncio.new_event_loop() if self._parcel["asyncio_loop"] else uvloop.new_event_loop()
        give_back_zeros(loop)
        asyncio.set_event_loop(loop)
        signal.signal(INTERRUPT_SIGNAL, self._interrupt)
        os.register_at_fork(after_in_child=self._become_child)
        try:
            # Outside of the loop, as under a WSGI server: synchronous code may refuse to run inside of one.
            code = self._load(in_loop=False)
            return loop.run_until_complete(self._live(code))
        except SupervisorError as error:
            self._tell_failure(error)
            return EXIT_START_FAILED
        except SystemExit as error:
            # Raised in a callback of the app; a request's or a task's own is contained there.
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:  # noqa: BLE001  (reported on stderr like any interpreter would)
            traceback.print_exc()
            return 1
        finally:
            signal.signal(INTERRUPT_SIGNAL, signal.SIG_IGN)

    def _become_child(self) -> None:
        """Take from a forked child what is its parent's: signals sent to the one must not reach the other.

        The child has the parent's handlers, and its wakeup descriptor is the very one that the parent's loop
        reads: a SIGTERM to the child would stop the parent, and never the child.
        """
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if getattr(signal.getsignal(number), "__module__", None) in LOOP_MODULES:
                signal.signal(number, signal.SIG_DFL)
        signal.signal(INTERRUPT_SIGNAL, signal.SIG_IGN)
        faulthandler.unregister(DUMP_SIGNAL)
        self._beat.cut_off()
        # An answer is the parent's to give: the child's would reach whoever asks next on that connection.
        served = self._server.descriptors() if self._server is not None else []
        # The numbers stay taken, for the child's copy of the loop knows them.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (self._control.fileno(), *served):
            os.dup2(null, descriptor, inheritable=False)
        os.close(null)

    def _build_context(self, plain: dict[str, Any]) -> AppContext:
        logger = logging.getLogger(f"app.{plain['app']}")
        return AppContext(**{**plain, "data_dir": Path(plain["data_dir"]), "logger": logger})

    def _load(self, *, in_loop: bool) -> LoadedCode | None:
        """Import the app's code; None for code that must be imported inside a running loop."""
        try:
            return self._loader.load(self._parcel["entrypoint"])
        except SupervisorError as error:
            if in_loop or NO_RUNNING_LOOP not in error.message:
                raise
            return None

    async def _live(self, code: LoadedCode | None) -> int:
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        # Nothing else runs here yet, so a blocking import holds up nobody.
        code = code or self._load(in_loop=True)
        assert code is not None
        app = await code.build(self._context, threads=self._parcel["limits"]["max_threads"])
        lifespan = Lifespan(app, self._secrets)
        await lifespan.startup()
        self._server = serving.Server(app, lifespan.state, self._beat, self._context.logger)
        loop.add_reader(self._control.fileno(), self._read_control)
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self._beat.start(loop)
        self._tell({"op": "ready", "protocol": code.protocol or "asgi", "kind": code.kind})
        await self._stopping.wait()
        return await self._stop(lifespan, code)

    async def _stop(self, lifespan: Lifespan, code: LoadedCode) -> int:
        assert self._server is not None
        # A blocking shutdown is bounded by the node's patience, not by the block budget.
        self._beat.stop()
        deadline = time.monotonic() + self._stop_timeout
        cut = await self._server.close()
        error = await lifespan.shutdown(max(0.0, deadline - time.monotonic()))
        code.release()
        report: dict[str, Any] = {"op": "stopped", "cut": cut}
        if error is not None:
            detail = error.metadata.get("detail", "")[-MAX_DETAIL_BYTES:]
            report["error"] = {"reason": error.reason, "message": error.message[:2000], "detail": detail}
        self._tell(report)
        return 0

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(wire.ClosedError, BlockingIOError):
            wire.send(self._control, message)

    def _tell_failure(self, error: SupervisorError) -> None:
        detail = error.metadata.get("detail", "")[-MAX_DETAIL_BYTES:]
        self._tell(
            {"op": "failed", "reason": error.reason, "message": error.message[:2000], "detail": detail}
        )

    def _read_control(self) -> None:
        assert self._server is not None
        assert self._stopping is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                message, descriptors = wire.receive(self._control)
            except BlockingIOError:
                return
            except wire.ClosedError:
                # The node is gone, and this process with it in a moment.
                loop.remove_reader(self._control.fileno())
                self._stopping.set()
                return
            if message["op"] == "connect":
                for descriptor in descriptors:
                    self._beat.take()
                    sock = socket.socket(fileno=descriptor)
                    sock.setblocking(False)
                    task = loop.create_task(self._server.connect(sock))
                    self._server.tasks.add(task)
                    task.add_done_callback(self._server.tasks.discard)
            elif message["op"] == "stop":
                self._stop_timeout = float(message["timeout"])
                self._stopping.set()

    def _on_sigterm(self) -> None:
        """Stop. The node sends the signal too, behind its message: without one it is somebody else's."""
        assert self._stopping is not None
        if not self._stopping.is_set():
            self._read_control()
        if not self._stopping.is_set():
            self._tell({"op": "leaving"})
            self._stopping.set()

    def _interrupt(self, _signal: int, where: FrameType | None) -> None:
        # The loop may have gone on between the node's look and this moment: then nobody is to blame.
        if self._beat.late() < self._parcel["block_budget"]:
            return
        if not _in_callback(where):
            return  # between two callbacks, in the loop's own code
        raise serving.LoopBlocked("the event loop was blocked beyond the app's block budget")


def _in_callback(where: FrameType | None) -> bool:
    """Tell whether the code at a frame was called by the loop, and is not the loop itself."""
    frame = where
    while frame is not None and frame.f_code is not Guest.run.__code__:
        if frame.f_code is asyncio.Handle._run.__code__:
            return frame is not where
        frame = frame.f_back
    # uvloop's own code has no frames, so all there are between it and here are the app's.
    return where is not frame and not _runs_asyncio()


def _runs_asyncio() -> bool:
    return isinstance(asyncio._get_running_loop(), asyncio.BaseEventLoop)


class _NodeLogHandler(logging.Handler):
    """Hands log records to the node, one JSON line each, so that level and logger survive."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; longer than `MAX_RECORD_CHARACTERS` it is cut."""
        try:
            message = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                message += "\n" + traceback_of(record.exc_info[1]).rstrip()
            entry = [record.levelno, record.name[:200], record.created, message[:MAX_RECORD_CHARACTERS]]
            line = json.dumps(entry, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
            os.write(self._descriptor, line)
        except Exception:  # noqa: BLE001  (logging's own rule: a record must not break the app)
            self.handleError(record)
