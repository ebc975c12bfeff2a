"""What the code of a folder says it needs, and what of it this Python lacks.

A folder says so in `requirements.txt` or in `pyproject.toml` (`project.dependencies`).
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

INSTALL_TIMEOUT = 600.0


def missing_in(folder: Path) -> list[str]:
    """Return the requirements of a folder that are not installed, or in another version, as they are written.

    Lines that only pip understands (`-r`, `-e`, addresses) are not looked at.
    """
    return [text for text in _told(folder) if not _is_met(text)]


def command_for(folder: Path) -> list[str]:
    """Return the command that installs what a folder needs into this Python."""
    listed = folder / "requirements.txt"
    what = ["--requirement", str(listed)] if listed.is_file() else _told(folder)
    return [sys.executable, "-m", "pip", "install", *what]


def install(folder: Path) -> bool:
    """Run that command; return whether it went well. What pip says goes to the terminal."""
    return subprocess.run(command_for(folder), check=False, timeout=INSTALL_TIMEOUT).returncode == 0  # noqa: S603


def _told(folder: Path) -> list[str]:
    listed, project = folder / "requirements.txt", folder / "pyproject.toml"
    if listed.is_file():
        return list(_lines(listed.read_text(errors="replace").splitlines()))
    if project.is_file():
        try:
            content = tomllib.loads(project.read_text(errors="replace"))
        except tomllib.TOMLDecodeError:
            return []
        told = content.get("project", {}).get("dependencies", [])
        return [str(text) for text in told] if isinstance(told, list) else []
    return []


def _lines(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        text = line.partition(" #")[0].strip()
        if text and not text.startswith(("#", "-")) and "://" not in text:
            yield text


def _is_met(text: str) -> bool:
    try:
        wanted = Requirement(text)
    except InvalidRequirement:
        return True  # pip's business, and pip will say so
    if wanted.marker is not None and not wanted.marker.evaluate():
        return True
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
