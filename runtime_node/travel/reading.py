"""The node's side of the process that reads an app's data directory: one question at a time, with a limit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_node.travel import reader_process
from services.rpc.errors import SupervisorError

ANSWER_SECONDS = 60.0
"""The longest that an answer may take: a directory with a million files is walked in it."""
LINE_BYTES = 8 * 1024 * 1024
PAGE = 500


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a file."""

    offset: int
    data: bytes
    digest: bytes


class Reading:
    """Reads one directory until closed. Belongs to the control loop; any caller may be cancelled."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()
        self._calls: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, root: Path) -> Reading:
        """Start the process. Raises SupervisorError DATABASE_UNAVAILABLE."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(Path(reader_process.__file__)), str(root),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES,
            )  # fmt: skip
        except OSError as fault:
            raise _unreadable(str(fault.strerror or fault)) from fault
        return cls(process)

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
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._process.communicate()

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
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
                raise _unreadable("its reader has ended") from None
        if "error" in answer:
            raise _unreadable(answer["error"])
        return answer, data


def _unreadable(why: str) -> SupervisorError:
    return SupervisorError(
        "DATABASE_UNAVAILABLE", f"The app's data directory cannot be read: {why}.", metadata={"why": why}
    )
