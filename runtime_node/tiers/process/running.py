"""One guest as its node sees it: the process, its streams, its sign of life, its end.

Lives on the control loop; only `asgi` and `usage` are called elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from appsupervisor.runtime.v1.runtime_environment_pb2 import Limits
from runtime_node.asgi import ASGIApp
from runtime_node.loader.failures import redact
from runtime_node.tiers.process import beat, exit_reason, procfs, wire
from runtime_node.tiers.process.guest_signals import DUMP_SIGNAL, INTERRUPT_SIGNAL
from runtime_node.tiers.process.limits import ProcessLimits
from runtime_node.tiers.process.link import GuestLink, error_told
from runtime_node.tiers.process.output import MAX_RECORD_BYTES, LineReader, Tail, parse_record
from runtime_node.tiers.process.proxy import GuestProxy
from runtime_node.tiers.process.watch import Watch
from runtime_node.tiers.process.zygote import Ended, Zygote, pipe
from runtime_node.tiers.runner import Launch, StopReport, Usage
from services.rpc.errors import SupervisorError

OnOutput = Callable[[str, str], None]
"""Called on the control loop with the stream ("stdout", "stderr") and one line without its end."""

KILL_SECONDS: Final = 5.0
STOP_GRACE_SECONDS: Final = 0.25
"""Beyond the time the app's shutdown may take: what the guest needs to report and to exit."""
STACK_SECONDS: Final = 1.0
"""In which a guest has to write where it stands; it takes milliseconds unless the machine is busy."""
MAX_STACK_BYTES: Final = 16 << 10
SAMPLE_SECONDS: Final = 1.0
LINK_SECONDS: Final = 1.0
"""From the end of its link to that of its process: what is told in this time is why."""
MAX_CUT: Final = 1_000_000
"""More requests than a guest can have had; what it tells beyond is not passed on."""
IDLE_SHARE: Final = 0.01
"""A process that uses less of a CPU than this waits for something, for ever as it seems."""


class GuestProcess:
    """A forked guest. `ready` resolves when it serves, or with the error of its start."""

    def __init__(
        self, launch: Launch, zygote: Zygote, watch: Watch, limits: ProcessLimits, on_output: OnOutput
    ) -> None:
        self._launch = launch
        self._zygote = zygote
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._on_output = on_output
        self.block_budget = limits.block_budget
        self.memory_limit = limits.memory_bytes
        self.max_processes = limits.max_processes
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
        self._used = 0.0
        self._dumping: asyncio.Task[None] | None = None
        self._sampled = (0.0, Usage())
        self._secrets = launch.context.hidden

        self._leaving: asyncio.TimerHandle | None = None
        out, error, log, self._stack = self._open_descriptors()
        self._readers = [
            LineReader(self._loop, out, partial(on_output, "stdout")),
            LineReader(self._loop, error, self._on_stderr),
            LineReader(self._loop, log, self._on_record, MAX_RECORD_BYTES),
        ]
        self.proxy = GuestProxy(
            self._link.connect,
            self._resource,
            is_alive=lambda: procfs.is_alive(self.pid),
            on_malformed=self._malformed_answer,
        )

    def _open_descriptors(self) -> list[int]:
        """Open what node and guest share; return our ends of its streams: output, errors, log, stacks.

        Raises OSError, and then nothing is left open: a node that is out of descriptors gets no further out.
        """
        with contextlib.ExitStack() as undo:
            self._link = GuestLink(self._on_report, self._on_malformed, self._on_link_closed)
            undo.callback(self._link.close)
            shared = beat.open_memory()
            undo.callback(os.close, shared)
            self.beat = beat.BeatReader(shared)
            undo.callback(self.beat.close)
            ours: list[int] = []
            theirs: list[int] = []
            for _ in range(4):
                read, write = pipe()
                undo.callback(os.close, read)
                undo.callback(os.close, write)
                ours.append(read)
                theirs.append(write)
            undo.pop_all()
        guest_out, guest_error, guest_log, guest_stack = theirs
        self._for_guest = [guest_out, guest_error, guest_log, shared, guest_stack]
        return ours

    async def fork(self, parcel: dict[str, Any]) -> None:
        """Have the zygote fork the process. Raises OSError when it can't; `release` is the caller's."""
        packed = wire.pack_parcel(parcel)
        try:
            descriptors = [packed, self._link.guest_end.fileno(), *self._for_guest]
            name = self._launch.context.app
            self._serial, self.pid, self._pidfd = await self._zygote.spawn(
                name, descriptors, self._on_exit, self._limits.max_tasks
            )
        finally:
            os.close(packed)
            self._close_guest_ends()
        self.tag = self._zygote.tag_of(self._serial)
        if self._cause is not None:
            self.kill()  # it broke a rule before it could be told which process it is

    async def serves(self) -> None:
        """Wait until it serves, then begin to watch it. Raises the error of its start."""
        await self.ready
        await self._zygote.joined(self._serial)
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
        self._link.close()
        self._close_guest_ends()
        if self._leaving is not None:
            self._leaving.cancel()
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
        self.beat.close()

    async def stop(self, timeout: float) -> StopReport:
        """See RunningApp."""
        self._stopping = True
        self._watch.remove(self)
        if self.gone.done():
            # It ended by itself, which `on_exit` has told; a stop adds but what was left behind.
            self.release()
            return StopReport(leaks=_leaks(self.gone.result(), self.pid))
        self._link.stop(timeout)
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait({self.gone}, timeout=timeout + STOP_GRACE_SECONDS)
        except asyncio.CancelledError:
            self.kill()
            self.release()
            raise
        in_time = self.gone.done()
        ended = self.gone.result() if in_time else await self.end()
        self._link.read()
        report = self._report(ended, in_time, timeout)
        self.release()
        return report

    def usage(self) -> Usage:
        """See RunningApp. Read from /proc at most once a second; the last figures stay after the end."""
        now = time.monotonic()
        if now - self._sampled[0] < SAMPLE_SECONDS or self.gone.done():
            return self._sampled[1]
        memory = procfs.private_bytes(self.pid)
        lag = self.beat.take_lag(time.monotonic_ns())
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
            self._used = procfs.cpu_seconds(self.pid) or 0.0
            if self._dumping is None:
                self._dumping = self._loop.create_task(self._tell_blocked(seconds))
            return
        if self._dumping is not None:
            return
        if seconds > self._limits.unresponsive_seconds and not self._is_left_alone(seconds):
            self.kill(self._stall_error(seconds))
        elif time.monotonic() - self._interrupted > 0.5:
            self._interrupted = time.monotonic()
            self._signal(INTERRUPT_SIGNAL)

    def _is_left_alone(self, seconds: float) -> bool:
        # `REPORT` spares code that takes its time; what does not run at all will never be done.
        used = (procfs.cpu_seconds(self.pid) or 0.0) - self._used
        return self._limits.block_action == Limits.REPORT and used > IDLE_SHARE * seconds

    def _stall_error(self, seconds: float) -> SupervisorError:
        if procfs.state(self.pid) in ("T", "t"):
            sentence = f"A signal had stopped the app's process for {seconds:.1f} s, and it was ended."
            return SupervisorError("APP_UNRESPONSIVE", sentence, resource=self._resource)
        sentence = f"The app blocked its event loop for {seconds:.1f} s and was ended."
        return SupervisorError("APP_BLOCKED_LOOP", sentence, resource=self._resource)

    @property
    def waiting(self) -> int:
        """See watch.Watched."""
        return self._link.handed_over - self.beat.taken

    def on_deaf(self, seconds: float) -> None:
        """See watch.Watched."""
        if seconds > self._limits.unresponsive_seconds:
            sentence = f"The app's process took no request for {seconds:.1f} s and was ended."
            self.kill(SupervisorError("APP_UNRESPONSIVE", sentence, resource=self._resource))

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
        text = redact(stack[:MAX_STACK_BYTES].decode(errors="replace"), self._secrets)
        self._launch.on_blocked(text, seconds)

    # --- the process's side ---

    def _on_report(self, message: dict[str, Any]) -> None:
        match message.get("op"):
            case "ready" if not self.ready.done():
                self.ready.set_result(None)
            case "failed" if not self.ready.done():
                self.ready.set_exception(self._told_error(message))
            case "leaving":
                self._on_leaving()
            case "stopped":
                self._stopped_report = message
            case other:
                self._on_malformed(f"{wire.text(other, 40)!r} is no report of a guest")

    def _on_leaving(self) -> None:
        """Take note that it ends unasked: no request goes there any more, and its end has a limit."""
        if self._stopping or self._cause is not None or not self.ready.done():
            return
        sentence = "The app's process ended in order: it got a SIGTERM that its node had not sent."
        self._cause = SupervisorError("APP_EXITED", sentence, resource=self._resource)
        self._watch.remove(self)
        self.proxy.end(self._cause)
        self._leaving = self._loop.call_later(self._limits.stop_timeout + STOP_GRACE_SECONDS, self.kill)

    def _malformed_answer(self, why: str) -> None:
        with contextlib.suppress(RuntimeError):  # the node has ended, and the guest with it
            self._loop.call_soon_threadsafe(self._on_malformed, why)

    def _on_malformed(self, why: str) -> None:
        sentence = f"The app's process sent its node what a guest does not send, and was ended: {why}."
        self.kill(SupervisorError("APP_CRASHED", sentence, resource=self._resource))

    def _on_link_closed(self) -> None:
        # The usual cause is the process's end, which is told in a moment, with its reason.
        if not self.gone.done() and self._leaving is None:
            self._leaving = self._loop.call_later(LINK_SECONDS, self._end_without_link)

    def _end_without_link(self) -> None:
        if not self._stopping:
            sentence = "The app's process closed its connection to the node and was ended."
            self.kill(SupervisorError("APP_UNRESPONSIVE", sentence, resource=self._resource))

    def _told_error(self, told: object) -> SupervisorError:
        return error_told(told, resource=self._resource, secrets=self._secrets)

    def _on_exit(self, ended: Ended) -> None:
        self._link.read()
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

    def _on_stderr(self, line: str) -> None:
        self._tail.add(line)
        self._on_output("stderr", line)

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
        cut = told.get("cut")
        cancelled = min(max(cut, 0), MAX_CUT) if isinstance(cut, int) else 0
        return StopReport(error=error, cancelled_tasks=cancelled, leaks=leaks)

    def _signal(self, number: int) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _close_guest_ends(self) -> None:
        self._link.close_guest_end()
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
