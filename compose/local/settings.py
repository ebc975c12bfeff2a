"""Where the local stack listens and keeps its data: flags, each also an environment variable."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
PREFIX = "APPSUPERVISOR_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Ports of this machine (0: any free one) and the folder that holds all data."""

    control_plane_port: int
    node_port: int
    http_port: int
    data_dir: Path
    app_dirs: tuple[Path, ...] = ()
    """Folders with the user's own code, beside the demo's."""
    reload: bool = False
    """Restart apps whose code changes on disk."""
    install: bool = False
    """Install what the folders say they need."""

    @property
    def control_plane(self) -> str:
        """`host:port` of the control plane's gRPC."""
        return f"{HOST}:{self.control_plane_port}"

    @property
    def node(self) -> str:
        """`host:port` of the node's gRPC."""
        return f"{HOST}:{self.node_port}"

    @property
    def http(self) -> str:
        """`host:port` at which the node serves its apps."""
        return f"{HOST}:{self.http_port}"


def read_settings(argv: Sequence[str] | None = None) -> Settings:
    """Return the settings of the command line, or of the environment where it is silent."""
    parser = argparse.ArgumentParser(prog="python -m compose.local", description=__doc__)

    def add(flag: str, convert: type, default: str, text: str) -> None:
        variable = variable_of(flag)
        parser.add_argument(
            f"--{flag}",
            type=convert,
            default=os.environ.get(variable, default),
            help=f"{text} (default {default}; environment: {variable})",
        )

    add("control-plane-port", int, "7400", "port of the control plane's gRPC")
    add("node-port", int, "7401", "port of the node's gRPC")
    add("http-port", int, "8080", "port at which the node serves its apps")
    add("data-dir", Path, "data", "folder for the catalog and the apps' data")
    listed = os.environ.get(variable_of("app-dir"), "")
    parser.add_argument(
        "--app-dir",
        type=Path,
        action="append",
        default=[],
        help="folder to load your own apps' code from; may be repeated "
        f"(environment: {variable_of('app-dir')}, separated by {os.pathsep!r})",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="restart the apps whose code changes on disk, without a lost request",
    )
    parser.add_argument(
        "--install",
        action="store_true",
        help="install what the folders' requirements.txt or pyproject.toml name and this Python lacks",
    )
    parsed = vars(parser.parse_args(argv))
    named = parsed.pop("app_dir") or [Path(part) for part in listed.split(os.pathsep) if part]
    for folder in named:
        if not folder.is_dir():
            parser.error(f"--app-dir: {folder} is not a folder")
    return Settings(**parsed, app_dirs=tuple(folder.resolve() for folder in named))


def variable_of(flag: str) -> str:
    """Return the environment variable of a flag."""
    return PREFIX + flag.upper().replace("-", "_")
