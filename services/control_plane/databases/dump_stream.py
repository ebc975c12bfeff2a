"""Streams what an app has from one server to another: pg_dump's output is pg_restore's input, and counted.

Both log in as the app does, never as an administrator: what an app has put into its database runs there.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from services.control_plane.databases.names import libpq_url
from services.control_plane.databases.postgres_tools import PostgresTools
from services.rpc.errors import SupervisorError

CHUNK_BYTES = 256 * 1024
_KEPT_BYTES = 8 * 1024
"""Of what a program says on stderr: the end has the reason."""
_SHOWN = 600

_BOTH = ("--format=custom", "--no-owner", "--no-privileges")
_DUMP = (*_BOTH, "--compress=0", "--no-publications", "--no-subscriptions")
_RESTORE = (*_BOTH, "--exit-on-error", "--single-transaction")


async def stream(
    tools: PostgresTools, source: str, target: str, schema: str, copied: Callable[[int], None]
) -> int:
    """Copy from the database of one URL to that of another, and return how many bytes the dump had.

    `schema` is the one to copy, which the target has, empty; or empty for all of a database. `copied` is told
    the bytes so far. Raises SupervisorError DATABASE_NOT_MOVED; cancelled, it ends both programs.
    """
    # A folder of its own: what is in arguments or the environment is seen by others.
    part = [f"--schema={schema}"] if schema else []
    with tempfile.TemporaryDirectory(prefix="move") as folder:
        dump = await _start(tools.dump, [*_DUMP, *part], source, folder, "source")
        try:
            # The schema itself is there: with a schema named pg_restore makes what is in it alone.
            options = [*_RESTORE, *part, "--dbname=service=target"]
            restore = await _start(tools.restore, options, target, folder, "target")
            try:
                return await _pump(dump, restore, copied)
            finally:
                await _end(restore)
        finally:
            await _end(dump)


async def _start(
    program: Path, options: Sequence[str], url: str, folder: str, service: str
) -> asyncio.subprocess.Process:
    file = _service_file(folder, service, url)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    environment |= {
        "PGSERVICEFILE": str(file), "PGSERVICE": service, "PGAPPNAME": "appsupervisor move", "LC_ALL": "C",
    }  # fmt: skip
    reads = service == "target"
    return await asyncio.create_subprocess_exec(
        str(program), *options, env=environment, stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.PIPE if reads else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL if reads else asyncio.subprocess.PIPE, limit=CHUNK_BYTES,
    )  # fmt: skip


def _service_file(folder: str, service: str, url: str) -> Path:
    """Write down where to connect and how, for nobody else to read; return the file."""
    file = Path(folder, service)
    parameters = conninfo_to_dict(libpq_url(url))
    lines = "".join(f"{key}={value}\n" for key, value in parameters.items() if value is not None)
    file.touch(mode=0o600)
    file.write_text(f"[{service}]\n{lines}", encoding="utf-8")
    return file


async def _pump(
    dump: asyncio.subprocess.Process, restore: asyncio.subprocess.Process, copied: Callable[[int], None]
) -> int:
    said = [asyncio.create_task(_said(it)) for it in (dump, restore)]
    total = 0
    try:
        assert dump.stdout is not None
        assert restore.stdin is not None
        try:
            while chunk := await dump.stdout.read(CHUNK_BYTES):
                restore.stdin.write(chunk)
                await restore.stdin.drain()
                total += len(chunk)
                copied(total)
        except (BrokenPipeError, ConnectionResetError):
            dump.kill()  # pg_restore has ended, and says why
        else:
            # Of a dump that has broken off pg_restore must not take what there is for all of it.
            if await dump.wait():
                restore.kill()
        restore.stdin.close()
        await asyncio.gather(dump.wait(), restore.wait())
        told = await asyncio.gather(*said)
    finally:
        for task in said:
            task.cancel()
    # What ended the other one is the one that did not succeed by itself.
    for name, process, text in (("pg_restore", restore, told[1]), ("pg_dump", dump, told[0])):
        if process.returncode is not None and process.returncode > 0:
            raise _failed(name, text)
    if restore.returncode or dump.returncode:
        raise _failed("pg_dump or pg_restore", "somebody ended it")
    return total


async def _said(process: asyncio.subprocess.Process) -> str:
    """Return the end of what a program says on stderr."""
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(_KEPT_BYTES):
        kept = (kept + chunk)[-_KEPT_BYTES:]
    return kept.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _failed(program: str, said: str) -> SupervisorError:
    lines = [line.partition("error: ")[2] or line for line in said.splitlines() if "error:" in line.lower()]
    why = " ".join((lines or said.splitlines() or ["it ended without a word"])[-3:])[:_SHOWN]
    return SupervisorError(
        "DATABASE_NOT_MOVED", f"{program} failed: {why}", metadata={"why": why, "program": program}
    )
