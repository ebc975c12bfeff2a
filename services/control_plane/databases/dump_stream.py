"""Streams what an app has from one server to another: pg_dump's output is pg_restore's input, and counted.

Both log in as the app does, never as an administrator: what an app has put into its database runs there.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
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
# Of extensions plpgsql alone, which every database has: the others are there, made by who may.
_DUMP = (*_BOTH, "--compress=0", "--no-publications", "--no-subscriptions", "--extension=plpgsql")
_RESTORE = (*_BOTH, "--exit-on-error", "--single-transaction")


async def stream(
    tools: PostgresTools, source: str, target: str, schema: str, copied: Callable[[int], None]
) -> int:
    """Copy from the database of one URL to that of another, and return how many bytes the dump had.

    `schema` is the one to copy, which the target has, empty; or empty for all of a database. `copied` is told
    the bytes so far, on the loop. Raises DATABASE_NOT_MOVED; cancelled, it ends both programs.
    """
    loop = asyncio.get_running_loop()
    part = [f"--schema={schema}"] if schema else []
    # A folder of its own: what is in arguments or the environment is seen by others.
    with tempfile.TemporaryDirectory(prefix="move") as folder, ExitStack() as stack:
        try:
            dump = _start(tools.dump, [*_DUMP, *part], source, folder, "source")
            stack.callback(_end, dump)
            # The schema itself is there: with a schema named pg_restore makes what is in it alone.
            options = [*_RESTORE, *part, "--dbname=service=target"]
            restore = _start(tools.restore, options, target, folder, "target")
            stack.callback(_end, restore)
        except OSError as fault:
            raise _failed("pg_dump or pg_restore", str(fault)) from fault
        # A thread of its own, for as long as that takes; it ends with the programs.
        executor = stack.enter_context(ThreadPoolExecutor(1))

        def tell(total: int) -> None:
            loop.call_soon_threadsafe(copied, total)

        pumped = loop.run_in_executor(executor, _pump, dump, restore, tell)
        try:
            total = await asyncio.shield(pumped)
        finally:
            for process in (dump, restore):
                process.kill()
            await asyncio.wait([pumped])
        _check(dump, restore, Path(folder))
        return total


def _start(
    program: Path, options: Sequence[str], url: str, folder: str, service: str
) -> subprocess.Popen[bytes]:
    file = _service_file(folder, service, url)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    environment |= {
        "PGSERVICEFILE": str(file), "PGSERVICE": service, "PGAPPNAME": "appsupervisor move", "LC_ALL": "C",
    }  # fmt: skip
    reads = service == "target"
    # Not by the loop's means: uvloop forks, and what gRPC does in a fork ends some of the children.
    with Path(folder, f"{service}.said").open("wb") as said:
        return subprocess.Popen(  # noqa: S603 - found by us, and without a shell
            [str(program), *options], env=environment, stderr=said,
            stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if reads else subprocess.PIPE,
        )  # fmt: skip


def _service_file(folder: str, service: str, url: str) -> Path:
    """Write down where to connect and how, for nobody else to read; return the file."""
    file = Path(folder, service)
    parameters = conninfo_to_dict(libpq_url(url))
    lines = "".join(f"{key}={value}\n" for key, value in parameters.items() if value is not None)
    file.touch(mode=0o600)
    file.write_text(f"[{service}]\n{lines}", encoding="utf-8")
    return file


def _pump(
    dump: subprocess.Popen[bytes], restore: subprocess.Popen[bytes], copied: Callable[[int], object]
) -> int:
    """Give one program's output to the other until both have ended; return how much it was."""
    assert dump.stdout is not None
    assert restore.stdin is not None
    total = 0
    try:
        while chunk := os.read(dump.stdout.fileno(), CHUNK_BYTES):
            restore.stdin.write(chunk)
            total += len(chunk)
            copied(total)
        # Of a dump that has broken off pg_restore must not take what there is for all of it.
        if dump.wait():
            restore.kill()
        restore.stdin.close()
    except BrokenPipeError:
        with suppress(BrokenPipeError):
            restore.stdin.close()
        restore.wait()
        dump.kill()  # pg_restore has ended, and says why
    dump.wait()
    restore.wait()
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _check(dump: subprocess.Popen[bytes], restore: subprocess.Popen[bytes], folder: Path) -> None:
    """Raise DATABASE_NOT_MOVED unless both programs have succeeded."""
    # What ended the other one is the one that did not succeed by itself.
    for name, process, file in (("pg_restore", restore, "target.said"), ("pg_dump", dump, "source.said")):
        if process.returncode > 0:
            said = (folder / file).read_bytes()[-_KEPT_BYTES:]
            raise _failed(name, said.decode(errors="replace"))
    if restore.returncode or dump.returncode:
        raise _failed("pg_dump or pg_restore", "somebody ended it")


def _failed(program: str, said: str) -> SupervisorError:
    lines = [line.partition("error: ")[2] or line for line in said.splitlines() if "error:" in line.lower()]
    why = " ".join((lines or said.splitlines() or ["it ended without a word"])[-3:])[:_SHOWN]
    return SupervisorError(
        "DATABASE_NOT_MOVED", f"{program} failed: {why}", metadata={"why": why, "program": program}
    )
