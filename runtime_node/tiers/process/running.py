"""One guest as its node sees it: the process, its streams, its sign of life, its end.

Lives on the control loop; only `asgi` and `usage` are called elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from appsupervisor.runtime.v1.runtime_environment_pb2 import Limits
from runtime_node.asgi import ASGIApp
from runtime_node.loader.failures import redact
from runtime_node.tiers.process import exit_reason, procfs, wire
from runtime_node.tiers.process.bounds import Bounds
from runtime_node.tiers.process.guest_signals import DUMP_SIGNAL, INTERRUPT_SIGNAL
from runtime_node.tiers.process.output import MAX_RECORD_BYTES, LineReader, Tail, parse_record
from runtime_node.tiers.process.proxy import GuestProxy
from runtime_node.tiers.process.serving import Beat
from runtime_node.tiers.process.watch import Watch
from runtime_node.tiers.process.zygote import Ended, Zygote, pipe
from runtime_node.tiers.runner import Launch, StopReport, Usage
from services.rpc.errors import SupervisorError

OnOutput = Callable[[str, str], None]
"""Called on the control loop with the stream ("stdout", "stderr") and one line without its end."""

KILL_SECONDS: Final = 5.0
STOP_GRACE_SECONDS: Final = 0.25
"""Beyond the time the app's shutdown may take: what the guest needs to report and to exit."""
STACK_SECONDS: Final = 0.3
MAX_STACK_BYTES: Final = 16 << 10
SAMPLE_SECONDS: Final = 1.0


class GuestProcess:
    """A forked guest. `ready` resolves when it serves, or with the error of its start."""

    def __init__(
        self, launch: Launch, zygote: Zygote, watch: Watch, bounds: Bounds, on_output: OnOutput
    ) -> None:
        self._launch = launch
        self._zygote = zygote
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._bounds = bounds
        self.block_budget = bounds.block_budget
        self.memory_limit = bounds.memory_bytes
        self.max_processes = bounds.max_processes
        self.pid = 0
        self.tag = 0
        self._serial = 0
        self._pidfd: int | None = None
        self._resource = launch.spec.name
        self._cause: SupervisorError | None = None
        self._stopping = False
        self._stopped_report: dict[str, Any] | None = None
        self._tail = Tail()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[Ended] = self._loop.create_future()
        self._interrupted = 0.0
        self._dumping: asyncio.Task[None] | None = None
        self._sampled = (0.0, Usage())
        self._secrets = [*launch.context.secrets.values()]
        if launch.context.database_url:
            self._secrets.append(launch.context.database_url)

        self._control, self._guest_control = wire.pair()
        self._control.setblocking(False)
        self._guest_control.setblocking(False)
        beat = os.memfd_create("beat", os.MFD_CLOEXEC)
        os.ftruncate(beat, Beat.SIZE)
        self._beat_memory = mmap.mmap(beat, Beat.SIZE)
        self.beat = memoryview(self._beat_memory).cast("q")
        out, guest_out = pipe()
        error, guest_error = pipe()
        log, guest_log = pipe()
        self._stack, guest_stack = pipe()
        self._for_guest = [guest_out, guest_error, guest_log, beat, guest_stack]

        def on_stderr(line: str) -> None:
            self._tail.add(line)
            on_output("stderr", line)

        self._readers = [
            LineReader(self._loop, out, lambda line: on_output("stdout", line)),
            LineReader(self._loop, error, on_stderr),
            LineReader(self._loop, log, self._on_record, MAX_RECORD_BYTES),
        ]
        self._loop.add_reader(self._control.fileno(), self._read_control)
        self.proxy = GuestProxy(self._connect, self._resource)

    async def fork(self, parcel: dict[str, Any]) -> None:
        """Have the zygote fork the process. Raises OSError when it can't; `release` is the caller's."""
        packed = wire.pack_parcel(parcel)
        try:
            descriptors = [packed, self._guest_control.fileno(), *self._for_guest]
            name = self._launch.context.app
            self._serial, self.pid, self._pidfd = await self._zygote.spawn(name, descriptors, self._on_exit)
        finally:
            os.close(packed)
            self._close_guest_ends()
        self.tag = self._zygote.tag_of(self._serial)

    def watch(self) -> None:
        """Begin to watch it; called once it is ready."""
        self._watch.add(self)

    def kill(self, cause: SupervisorError | None = None) -> None:
        """Kill the process and all that it started; `cause` is then why it ended."""
        if cause is not None and self._cause is None:
            self._cause = cause
            # Before its connections break, so that its requests are told why and not just that it crashed.
            self.proxy.end(cause)
        self._signal(signal.SIGKILL)
        self._zygote.kill(self._serial)

    async def end(self) -> Ended | None:
        """Kill it and wait until it is gone; None when that can't be told in time."""
        if self._pidfd is not None and not self.gone.done():
            self.kill()
            await asyncio.wait({self.gone}, timeout=KILL_SECONDS)
        return self.gone.result() if self.gone.done() else None

    def release(self) -> None:
        """Release what this side holds of it. Repeats do nothing."""
        self._watch.remove(self)
        self.proxy.end(self._cause)
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
        self._close_guest_ends()
        for reader in self._readers:
            reader.close()
        if self._dumping is not None:
            self._dumping.cancel()
        if self._stack >= 0:
            os.close(self._stack)
            self._stack = -1
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if not self.ready.done():
            self.ready.cancel()
        self.beat.release()
        self.beat = memoryview(bytes(Beat.SIZE)).cast("q")
        self._beat_memory.close()

    async def stop(self, timeout: float) -> StopReport:
        """See RunningApp."""
        self._stopping = True
        self._watch.remove(self)
        if self.gone.done():
            # It ended by itself, which `on_exit` has told; a stop adds but what was left behind.
            self.release()
            return StopReport(leaks=_leaks(self.gone.result(), self.pid))
        with contextlib.suppress(wire.ClosedError, BlockingIOError):
            wire.send(self._control, {"op": "stop", "timeout": timeout})
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait({self.gone}, timeout=timeout + STOP_GRACE_SECONDS)
        except asyncio.CancelledError:
            self.kill()
            self.release()
            raise
        in_time = self.gone.done()
        ended = self.gone.result() if in_time else await self.end()
        self._read_control_once()
        report = self._report(ended, in_time, timeout)
        self.release()
        return report

    def usage(self) -> Usage:
        """See RunningApp. Read from /proc at most once a second; the last figures stay after the end."""
        now = time.monotonic()
        if now - self._sampled[0] < SAMPLE_SECONDS or self.gone.done():
            return self._sampled[1]
        memory = procfs.private_bytes(self.pid)
        lag = max(self.beat[Beat.LAG], 0)
        if due := self.beat[Beat.DUE]:
            lag = max(lag, time.monotonic_ns() - due)
        self.beat[Beat.LAG] = 0
        usage = Usage(
            cpu_seconds=procfs.cpu_seconds(self.pid),
            memory_bytes=procfs.resident_bytes(self.pid) if memory is None else memory[0],
            loop_lag_seconds=lag / 1e9,
        )
        self._sampled = (now, usage)
        return usage

    # --- what the watch found ---

    def on_stalled(self, seconds: float, first: bool) -> None:
        """See watch.Watched."""
        if first:
            self._interrupted = 0.0
            if self._dumping is None:
                self._dumping = self._loop.create_task(self._tell_blocked(seconds))
            return
        if self._dumping is not None:
            return
        bounds = self._bounds
        if seconds > bounds.unresponsive_seconds and bounds.block_action != Limits.REPORT:
            sentence = f"The app blocked its event loop for {seconds:.1f} s and was ended."
            self.kill(SupervisorError("APP_BLOCKED_LOOP", sentence, resource=self._resource))
        elif time.monotonic() - self._interrupted > 0.5:
            self._interrupted = time.monotonic()
            self._signal(INTERRUPT_SIGNAL)

    def on_memory(self, private_bytes: int) -> None:
        """See watch.Watched."""
        limit = self.memory_limit
        self.kill(exit_reason.out_of_memory(limit, resource=self._resource, tail="", used=private_bytes))

    def on_processes(self, count: int) -> None:
        """See watch.Watched."""
        sentence = f"The app ran {count} processes at a time where {self.max_processes} are allowed."
        self.kill(SupervisorError("APP_CRASHED", sentence, resource=self._resource))

    async def _tell_blocked(self, seconds: float) -> None:
        self._signal(DUMP_SIGNAL)
        stack = b""
        deadline = self._loop.time() + STACK_SECONDS
        quiet = False
        while self._loop.time() < deadline and not (stack and quiet):
            await asyncio.sleep(0.02)
            try:
                data = os.read(self._stack, 1 << 16)
            except BlockingIOError:
                quiet = True
            else:
                stack, quiet = stack + data, False
        self._dumping = None
        text = stack[:MAX_STACK_BYTES].decode(errors="replace")
        self._launch.on_blocked(text, seconds)

    # --- the process's side ---

    def _connect(self, theirs: socket.socket) -> None:
        try:
            wire.send(self._control, {"op": "connect"}, [theirs.fileno()])
        except wire.ClosedError as error:
            raise ConnectionError("the app's process is gone") from error

    def _read_control(self) -> None:
        if not self._read_control_once():
            self._loop.remove_reader(self._control.fileno())

    def _read_control_once(self) -> bool:
        """Take what the guest has told; tell whether more may come."""
        while self._control.fileno() >= 0:
            try:
                message, descriptors = wire.receive(self._control)
            except BlockingIOError:
                return True
            except (wire.ClosedError, wire.WireError):
                return False
            for descriptor in descriptors:
                os.close(descriptor)
            self._on_message(message)
        return False

    def _on_message(self, message: dict[str, Any]) -> None:
        match message.get("op"):
            case "ready" if not self.ready.done():
                self.ready.set_result(None)
            case "failed" if not self.ready.done():
                self.ready.set_exception(self._told_error(message))
            case "stopped":
                self._stopped_report = message

    def _told_error(self, told: dict[str, Any]) -> SupervisorError:
        detail = redact(str(told.get("detail", "")), self._secrets)
        message = redact(str(told.get("message", "")), self._secrets)
        metadata = {"detail": detail} if detail else {}
        try:
            return SupervisorError(
                str(told.get("reason")), message, resource=self._resource, metadata=metadata
            )
        except ValueError:  # a reason that is none: the guest's memory is the app's to spoil
            return SupervisorError("APP_CRASHED", message, resource=self._resource, metadata=metadata)

    def _on_exit(self, ended: Ended) -> None:
        self._read_control_once()
        for reader in self._readers:
            reader.close()
        tail = redact(self._tail.text, self._secrets)
        if self._cause is not None:
            error: SupervisorError | None = self._cause
            if tail:
                self._cause.metadata.setdefault("detail", tail)
        else:
            error = exit_reason.error_of(
                ended, resource=self._resource, tail=tail, memory_limit=self.memory_limit
            )
        self._cause = error
        self._watch.remove(self)
        self.proxy.end(error)
        was_ready = self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None
        if not self.ready.done():
            sentence = "The app's process ended before the app was ready."
            self.ready.set_exception(
                error or SupervisorError("APP_STARTUP_FAILED", sentence, resource=self._resource)
            )
        if not self.gone.done():
            self.gone.set_result(ended)
        if was_ready and not self._stopping:
            self.release()
            self._launch.on_exit(error)

    def _on_record(self, line: str) -> None:
        record = parse_record(line)
        logger = self._launch.context.logger
        if record is None:
            logger.info(line)
            return
        level, name, created, message = record
        entry = logging.LogRecord(logger.name, level, "", 0, message, None, None)
        entry.created = created
        entry.origin = name
        if logger.isEnabledFor(level):
            logger.handle(entry)

    def _report(self, ended: Ended | None, in_time: bool, timeout: float) -> StopReport:
        told = self._stopped_report or {}
        error: SupervisorError | None = None
        if not in_time:
            error = SupervisorError(
                "APP_SHUTDOWN_FAILED",
                f"The app's process did not end within {timeout:g} s and was killed.",
                resource=self._resource,
                metadata={"detail": tail} if (tail := redact(self._tail.text, self._secrets)) else {},
            )
        elif "error" in told:
            error = self._told_error(told["error"])
        elif ended is not None and not told:
            error = self._cause
        leaks = _leaks(ended, self.pid)
        return StopReport(error=error, cancelled_tasks=int(told.get("cut", 0)), leaks=leaks)

    def _signal(self, number: int) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _close_guest_ends(self) -> None:
        self._guest_control.close()
        while self._for_guest:
            os.close(self._for_guest.pop())


def _leaks(ended: Ended | None, pid: int) -> tuple[str, ...]:
    if ended is None:
        return (f"process {pid}, which could not be killed",)
    if ended.strays:
        return (f"{ended.strays} processes that the app had started, now killed",)
    return ()


class ProcessRunningApp:
    """A guest that serves, as the tier's callers see it (`RunningApp`)."""

    def __init__(self, guest: GuestProcess) -> None:
        self._guest = guest
        self._asgi: ASGIApp = guest.proxy.__call__

    @property
    def asgi(self) -> ASGIApp:
        """See RunningApp. May be called on any loop; exceptions are those of `GuestProxy`."""
        return self._asgi

    @property
    def pid(self) -> int:
        """Process id of the guest."""
        return self._guest.pid

    def usage(self) -> Usage:
        """See RunningApp."""
        return self._guest.usage()

    async def stop(self, timeout: float) -> StopReport:
        """See RunningApp. A guest that ends by itself meanwhile is no fault of the stop."""
        return await self._guest.stop(timeout)
