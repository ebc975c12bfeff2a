"""The node's side of the processes that read apps' data directories: one question at a time, with a limit.

A process reads one directory after another: to start one costs more than a small app's whole data does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_node.travel import reader_process
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.travel")

ANSWER_SECONDS = 60.0
"""The longest that an answer may take: a directory with a million files is walked in it."""
LINE_BYTES = 8 * 1024 * 1024
PAGE = 500
LEAVE_SECONDS = 2.0
"""For a process to close what it has open; else it is ended."""
IDLE_SECONDS = 10.0
"""For which a process waits for another directory."""
STARTS = 3
"""Processes that are begun for one directory, if each has ended before it could be asked."""
MAX_IDLE = 8
"""As many apps leave a node at a time that is drained."""

_ENDED = (OSError, RuntimeError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)
"""Of talking to a process that has ended: RuntimeError is uvloop's, of a pipe that it has closed."""


class ReaderEndedError(SupervisorError):
    """The process has ended, or speaks no sense."""

    def __init__(self) -> None:
        why = "its reader has ended"
        super().__init__("DATABASE_UNAVAILABLE", _sentence(why), metadata={"why": why})


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a file."""

    offset: int
    data: bytes
    digest: bytes


class Readers:
    """The processes that have read a directory and wait for the next one. Belongs to the control loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._idle: list[tuple[float, asyncio.subprocess.Process]] = []
        """Since when, the longest first."""

    async def open(self, root: Path) -> Reading:
        """Begin to read a directory. Raises SupervisorError DATABASE_UNAVAILABLE."""
        while self._idle:
            _, process = self._idle.pop()
            if process.returncode is None:
                reading = Reading(process, self)
                with contextlib.suppress(SupervisorError):  # it has ended meanwhile
                    await reading.begin(root)
                    return reading
        for left in reversed(range(STARTS)):
            reading = Reading(await _started(), self)
            try:
                await reading.begin(root)
            except ReaderEndedError as ended:
                log.warning("a reader has ended as it began: %s", ended.message,
                            extra={"action": "travel.reader_ended"})  # fmt: skip
                if not left:
                    raise
            else:
                break
        return reading

    async def keep(self, process: asyncio.subprocess.Process) -> None:
        """Let a process that reads nothing wait for the next directory, or end it."""
        self._idle.append((self._clock(), process))
        if len(self._idle) > MAX_IDLE:
            await _end(self._idle.pop(0)[1])

    async def end_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """End those that have waited for so long."""
        due = self._clock() - seconds
        while self._idle and self._idle[0][0] <= due:
            await _end(self._idle.pop(0)[1])


class Reading:
    """Reads one directory until closed. Belongs to the control loop; any caller may be cancelled."""

    def __init__(self, process: asyncio.subprocess.Process, readers: Readers) -> None:
        self._process = process
        self._readers = readers
        self._turn = asyncio.Lock()
        self._calls: set[asyncio.Task[Any]] = set()

    async def begin(self, root: Path) -> None:
        """Read that directory from now on; whatever fails has ended the process."""
        try:
            await self._ask(do="begin", root=str(root))
        except BaseException:
            await self.end()
            raise

    async def pin(self) -> tuple[int, list[str]]:
        """Keep the logs of databases in WAL mode; return the bytes of all files, and those databases."""
        answer, _ = await self._ask(do="pin")
        return answer["bytes"], answer["pinned"]

    async def entries(self, *, begin: bool, after: str, changed: bool) -> tuple[list[dict[str, Any]], int]:
        """Return the next entries from a path on, none after the last, and how many were left out."""
        answer, _ = await self._ask(do="entries", begin=begin, after=after, count=PAGE, changed=changed)
        return answer["entries"], answer["skipped"]

    async def block(self, path: str, offset: int, *, changed: bool, live: bool) -> Block | None:
        """Return the next block of a file from an offset on; `changed`: one that is not as it was sent.

        `live`: the app goes on, and a file that is as it is now will not be looked through again.
        """
        answer, data = await self._ask(do="block", path=path, offset=offset, changed=changed, live=live)
        return Block(answer["offset"], data, bytes.fromhex(answer["digest"])) if data else None

    async def close(self) -> None:
        """Read no more; a process that was asked nothing just now waits for the next directory."""
        if not self._calls:
            try:
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._ask(do="leave")
            except (SupervisorError, TimeoutError):
                pass
            except BaseException:
                await self.end()
                raise
            else:
                await self._readers.keep(self._process)
                return
        await self.end()

    async def end(self) -> None:
        """End the process."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await _end(self._process)

    async def _ask(self, **command: Any) -> tuple[dict[str, Any], bytes]:
        # Whoever asks may be cancelled; the answer is to be taken all the same, or the next one gets it.
        call = asyncio.create_task(self._exchange(command))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await asyncio.shield(call)

    async def _exchange(self, command: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        async with self._turn:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    asked.write(json.dumps(command).encode() + b"\n")
                    await asked.drain()
                    answer = json.loads(await told.readuntil(b"\n"))
                    data = await told.readexactly(answer.get("length", 0))
            except TimeoutError:
                self._process.kill()  # what it may answer yet would be taken for another answer
                raise _unreadable(f"its reader did not answer within {ANSWER_SECONDS:g} s") from None
            except _ENDED:
                raise ReaderEndedError from None
        if "error" in answer:
            raise _unreadable(answer["error"])
        return answer, data


async def _started() -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(Path(reader_process.__file__)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES,
        )  # fmt: skip
    except OSError as fault:
        raise _unreadable(str(fault.strerror or fault)) from fault


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


def _unreadable(why: str) -> SupervisorError:
    return SupervisorError("DATABASE_UNAVAILABLE", _sentence(why), metadata={"why": why})


def _sentence(why: str) -> str:
    return f"The app's data directory cannot be read: {why}."
