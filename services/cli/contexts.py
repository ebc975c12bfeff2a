"""Contexts: which control plane the commands talk to, by name, kept in one file.

The file is `$APPSUPERVISOR_CONFIG`, or `appsupervisor/contexts.yaml` in the user's configuration folder.
It may come to hold credentials, so others cannot read it.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from services.cli.errors import CliError, Exit

DEFAULT_ADDRESS = "127.0.0.1:7400"


@dataclass(frozen=True, slots=True)
class Context:
    """One control plane: its `host:port`, several separated by commas; `ca` is a file of certificates."""

    address: str = DEFAULT_ADDRESS
    ca: str = ""


@dataclass(slots=True)
class Contexts:
    """All contexts by name, and the name of the one in use; empty for the default address."""

    current: str = ""
    contexts: dict[str, Context] = field(default_factory=dict)

    def chosen(self, name: str) -> Context:
        """Return a context by name, the current one for an empty name. Raises CliError for an unknown one."""
        name = name or self.current
        if not name:
            return Context()
        if name not in self.contexts:
            known = ", ".join(sorted(self.contexts)) or "none"
            raise CliError(f"There is no context {name!r}; known: {known}.", Exit.USAGE)
        return self.contexts[name]


def contexts_file() -> Path:
    """Return where the contexts are kept."""
    named = os.environ.get("APPSUPERVISOR_CONFIG")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "appsupervisor" / "contexts.yaml"


def read_contexts() -> Contexts:
    """Read the file; one that is not there holds nothing. Raises CliError naming what is wrong in it."""
    path = contexts_file()
    try:
        content: Any = yaml.safe_load(path.read_text()) or {}
        contexts = {str(name): Context(**told) for name, told in (content.get("contexts") or {}).items()}
        return Contexts(str(content.get("current") or ""), contexts)
    except FileNotFoundError:
        return Contexts()
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as wrong:
        raise CliError(f"{path} cannot be read: {wrong}", Exit.USAGE) from wrong


def write_contexts(contexts: Contexts) -> None:
    """Replace the file in one step; nobody but its user can read it."""
    path = contexts_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = yaml.safe_dump(
        {"current": contexts.current, "contexts": {n: asdict(c) for n, c in contexts.contexts.items()}}
    )
    beside = path.with_suffix(f".{os.getpid()}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    beside.replace(path)
