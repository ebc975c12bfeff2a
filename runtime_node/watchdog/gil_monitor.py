"""A small process that notices when the node's interpreter stands still, which no thread of the node can.

Run by `gil_holds.HoldWatch` as a script, without the node's packages: it reads a beat in shared memory, finds
the thread that keeps the lock by what Linux tells of it, and signals that thread to write down its stack.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
import time

LAYOUT = struct.Struct("=qqq")
"""The node's beat; the beat at which the monitor saw it stand still; how many reports follow."""
REPORT = struct.Struct("=qqq")
"""A thread's id; where its stack begins and ends in the file."""
MAX_REPORTS = 32
SIZE = 4096

LOOK = 0.04
LATE = 150_000_000
"""Nanoseconds without a beat after which the interpreter stands still; a beat comes each 50 ms."""
SAMPLE = 0.03
BUSY = 0.25
"""Part of the sample for which a thread must have run to be the one that keeps the lock.

Those that wait for it wake now and then; on a loaded machine the one that has it has no CPU all the time.
"""
_IDLE = (
    "futex",
    "epoll",
    "ep_poll",
    "poll_schedule",
    "do_select",
    "skb_wait",
    "pipe_read",
    "do_sigtimedwait",
)


def on_cpu(pid: int) -> dict[int, int]:
    """Return the nanoseconds that each thread of a process has run."""
    times = {}
    for name in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{name}/schedstat", "rb") as file:
                times[int(name)] = int(file.read().split()[0])
        except (OSError, IndexError, ValueError):
            continue
    return times


def waits(pid: int, thread: int) -> bool:
    """Tell whether a thread sleeps in a system call that waits neither for a lock nor for events."""
    try:
        with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
            state = file.read().rpartition(b") ")[2][:1]
        with open(f"/proc/{pid}/task/{thread}/wchan", "rb") as file:
            place = file.read().decode()
    except OSError:
        return False
    return state in b"SD" and place not in ("", "0") and not any(word in place for word in _IDLE)


def suspects(pid: int) -> list[int]:
    """Return the threads that may keep the lock: one that computes, else those in odd system calls."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        if file.read().rpartition(b") ")[2][:1] in b"TtZX":
            return []
    before, began = on_cpu(pid), time.monotonic_ns()
    time.sleep(SAMPLE)
    after, took = on_cpu(pid), time.monotonic_ns() - began
    ran = {thread: after[thread] - before[thread] for thread in after if thread in before}
    busy = [thread for thread, spent in ran.items() if spent > took * BUSY]
    return busy or [thread for thread in after if waits(pid, thread)]


def main(pid: int, memory: int, dump: int, number: int) -> None:
    """Watch the process `pid`, our parent, until it is gone."""
    library = ctypes.CDLL(None, use_errno=True)
    shared = mmap.mmap(memory, SIZE)
    told = 0
    while os.getppid() == pid:
        time.sleep(LOOK)
        beat = LAYOUT.unpack_from(shared)[0]
        if not beat or beat == told or time.monotonic_ns() - beat < LATE:
            continue
        try:
            threads = suspects(pid)
        except OSError:
            continue
        if LAYOUT.unpack_from(shared)[0] != beat:
            continue
        if not threads:
            continue
        told = beat
        count = 0
        for thread in threads[:MAX_REPORTS]:
            start = os.fstat(dump).st_size
            if library.tgkill(pid, thread, number):
                continue
            end = _written(dump, start)
            REPORT.pack_into(shared, LAYOUT.size + count * REPORT.size, thread, start, end)
            count += 1
        # The count last: the node reads the reports once it sees its own beat here.
        struct.pack_into("=q", shared, 16, count)
        struct.pack_into("=q", shared, 8, beat)


def _written(dump: int, start: int) -> int:
    """Wait until a stack has been written, at most 50 ms; return where it ends."""
    end = start
    for _ in range(25):
        time.sleep(0.002)
        size = os.fstat(dump).st_size
        if size == end and size > start:
            break
        end = size
    return end


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
