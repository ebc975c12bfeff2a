"""Finds out who held the interpreter's lock while nothing else in the node could run.

The stack is taken during the hold: the monitor, a process of its own, signals the thread, and the handler
that writes the stack is C code that needs no lock. Whose code it was is worked out afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from runtime_node.isolation.frames import current_frames
from runtime_node.watchdog import gil_monitor, stacks
from runtime_node.watchdog.interruption import current_task
from runtime_node.watchdog.loops import WatchedLoop

log = logging.getLogger("runtime_node.watchdog")

HOLD_SECONDS = 0.25
"""A shorter hold is no event: imports and the collector hold the lock for tens of milliseconds."""
COLLECTOR_PART = 0.5
"""Part of a hold from which on the garbage collector is to blame, which serves everybody."""
MAX_STACK_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """One hold of the interpreter's lock."""

    instance: str
    """Whose code held it; "" when that cannot be told from the thread: its step was over too soon."""
    seconds: float
    stack: str


class HoldWatch:
    """The node's side of the monitor. `start` belongs to the main thread, `look` to the watchdog's."""

    def __init__(self) -> None:
        self._memory = self._dump = -1
        self._shared: mmap.mmap | None = None
        self._monitor: subprocess.Popen[bytes] | None = None
        self._number = int(getattr(signal, "SIGRTMIN", signal.SIGUSR2)) + 9
        self._beat = 0
        self._collecting = 0.0
        self._collected = 0.0

    def start(self) -> None:
        """Start the monitor; a machine that does not allow one goes without, and the log says so."""
        try:
            self._memory = os.memfd_create("beat")
            os.ftruncate(self._memory, gil_monitor.SIZE)
            self._shared = mmap.mmap(self._memory, gil_monitor.SIZE)
            self._dump = os.memfd_create("stacks")
            faulthandler.register(self._number, file=self._dump, all_threads=False, chain=False)
            arguments = (os.getpid(), self._memory, self._dump, self._number)
            self._monitor = subprocess.Popen(  # noqa: S603 - our own file
                [sys.executable, "-I", "-S", str(Path(gil_monitor.__file__)), *map(str, arguments)],
                pass_fds=(self._memory, self._dump), stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, AttributeError) as refused:
            log.warning(
                "no monitor of the interpreter lock: %s", refused, extra={"action": "watchdog.no_gil_monitor"}
            )
            return
        gc.callbacks.append(self._note_collection)

    def close(self) -> None:
        """End the monitor."""
        if self._monitor is not None:
            self._monitor.kill()
            self._monitor.wait()
            self._monitor = None
            gc.callbacks.remove(self._note_collection)
            faulthandler.unregister(self._number)
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        for descriptor in (self._memory, self._dump):
            if descriptor >= 0:
                os.close(descriptor)
        self._memory = self._dump = -1

    def look(self, late: float, loops: Mapping[int, WatchedLoop]) -> Held | None:
        """Give a sign of life; return what kept the last one from coming for `late` seconds, if it was long.

        `loops` are the watched ones by their thread's id. A stop of the whole process, or a machine
        without a CPU to spare, is not taken for a hold: the monitor finds nobody then.
        """
        if self._shared is None:
            return None
        held = None
        if late >= HOLD_SECONDS:
            held = self._examine(late, loops)
        self._collected = 0.0
        self._beat = time.monotonic_ns()
        struct.pack_into("=q", self._shared, 0, self._beat)
        return held

    def _examine(self, late: float, loops: Mapping[int, WatchedLoop]) -> Held | None:
        assert self._shared is not None
        steps, frames = _present(loops)
        threads = {t.native_id: t for t in threading.enumerate()}
        if self._collected >= late * COLLECTOR_PART:
            log.warning("a collection took %.2f s", self._collected, extra={"action": "watchdog.collection"})
            return None
        best: Held | None = None
        for native, stack in self._reports():
            thread = threads.get(native)
            watched = loops.get(native)
            if watched is not None:
                instance = watched.instance or _instance_on(watched, steps.get(native), stack, frames)
            elif thread is not None:
                instance = stacks.instance_of_thread(thread, frames.get(thread.ident or 0))
            else:
                continue
            if best is None or (instance and not best.instance):
                best = Held(instance, late, stack)
        frames.clear()
        return best

    def _reports(self) -> list[tuple[int, str]]:
        assert self._shared is not None
        _, seen, count = gil_monitor.LAYOUT.unpack_from(self._shared)
        if seen != self._beat:
            return []
        found = []
        for index in range(min(count, gil_monitor.MAX_REPORTS)):
            offset = gil_monitor.LAYOUT.size + index * gil_monitor.REPORT.size
            native, start, end = gil_monitor.REPORT.unpack_from(self._shared, offset)
            found.append((native, _ordered(os.pread(self._dump, end - start, start))))
        with contextlib.suppress(OSError):
            os.ftruncate(self._dump, 0)
            os.lseek(self._dump, 0, os.SEEK_SET)
        return found

    def _note_collection(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < 2:
            return
        if phase == "start":
            self._collecting = time.monotonic()
        else:
            self._collected += time.monotonic() - self._collecting


def _present(
    loops: Mapping[int, WatchedLoop],
) -> tuple[dict[int, asyncio.Task[Any] | None], dict[int, FrameType]]:
    """Return what loops run, and where all threads stand, of one and the same moment.

    A loop that has gone on meanwhile runs nothing here: what came next is not to blame for what was before.
    """
    steps = {native: current_task(watched.loop) for native, watched in loops.items()}
    frames = current_frames()
    same = {native: task for native, task in steps.items() if current_task(loops[native].loop) is task}
    return same, frames


def _instance_on(
    watched: WatchedLoop, task: asyncio.Task[Any] | None, stack: str, frames: Mapping[int, FrameType]
) -> str:
    """Return whose step a shared loop was in, if that was still the step that held the lock."""
    if task is None:
        return ""
    holder = stack.rpartition("\n")[2]
    frame = frames.get(watched.thread)
    while frame is not None:
        code = frame.f_code
        if f'"{code.co_filename}"' in holder and holder.endswith(f" in {code.co_name}"):
            return stacks.instance_of_task(task)
        frame = frame.f_back
    return ""


def _ordered(dump: bytes) -> str:
    """Return a stack as faulthandler wrote it in the order of a traceback, innermost call last."""
    lines = [line for line in dump[:MAX_STACK_BYTES].decode(errors="replace").splitlines() if "File " in line]
    return "\n".join(reversed(lines))
