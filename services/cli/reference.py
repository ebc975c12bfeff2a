"""Writes the command line's reference from the program itself: python -m services.cli.reference [--check]."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"

INTRODUCTION = """# The command line

`appsupervisor` talks to one control plane: `--address`, else `APPSUPERVISOR_ADDRESS`, else the context
in use (`appsupervisor contexts`), else 127.0.0.1:7400. Tables are for people; `-o json`, `-o yaml` and
`-o name` are for programs, `--jmespath` picks a part. `NO_COLOR` turns colours off. `appsupervisor
--install-completion` teaches your shell the commands and the names of your apps.

| exit status | what it says |
|---|---|
| 0 | done |
| 1 | it was carried out and did not succeed, or was refused |
| 2 | the command line, a document or a field is wrong |
| 3 | there is no such app, operation or environment |
| 4 | the time is up; what was asked for goes on |
| 5 | no server answers |
| 6 | it exists already, or has changed since it was read |

This page is generated from the program.
"""


def generated() -> str:
    """Return the page as the program of now has it."""
    command = [sys.executable, "-m", "typer", "services.cli.main", "utils", "docs", "--name", "appsupervisor"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603
    body = shown.partition("\n")[2].strip()
    return f"{INTRODUCTION}\n{body}\n"


def main() -> int:
    """Write the page, or tell whether it is as it should be; return the exit status."""
    text = generated()
    if "--check" not in sys.argv:
        PAGE.write_text(text)
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    sys.stderr.write(f"{PAGE.name} is not what the program says: python -m services.cli.reference\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
