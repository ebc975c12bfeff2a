"""Where the local stack listens and keeps its data: flags, each also an environment variable.

Other variables go to the program that reads them; one that cannot do here what it says is refused or told.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PREFIX = "APPSUPERVISOR_"

OWN = ("CONTROL_PLANE_PORT", "NODE_PORT", "HTTP_PORT", "DATA_DIR", "APP_DIR", "METRICS_LISTEN")
"""What the launcher itself reads."""

DECIDED = {
    "LISTEN": "set APPSUPERVISOR_CONTROL_PLANE_PORT and APPSUPERVISOR_NODE_PORT instead",
    "HTTP_LISTEN": "set APPSUPERVISOR_HTTP_PORT instead",
    "DATABASE_URL": "the catalog is in the folder that APPSUPERVISOR_DATA_DIR names",
    "CONTROL_PLANE": "its node joins its own control plane",
    "ENVIRONMENT": "its node belongs to the environment default",
    "NODE": "its node is node-1",
}
"""What the programs read and the launcher decides, and what to do instead."""

PASSED_ON = (
    *("ADVERTISE", "BASE_DOMAIN", "CONCURRENT_STARTS", "DRAIN_TIMEOUT", "ECHO_APP_LOGS", "HOSTS_ONLY"),
    *("LABEL", "LOG_LEVEL", "MAX_INSTANCES", "MEMORY_BUDGET_BYTES", "NODE_TIMEOUT", "PATH_HOST"),
    *("SHUTDOWN_TIMEOUT", "TRUSTED_PROXY"),
)
"""What a program reads by itself."""

OF_CLIENTS = ("ADDRESS", "CONFIG", "CONTEXT")
"""What the command line reads."""


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
    metrics: str = ""
    """`host:port` of the control plane's metrics; the node's are at the next port. Empty for none."""

    @property
    def metrics_of_node(self) -> str:
        """`host:port` of the node's metrics."""
        host, _, port = self.metrics.rpartition(":")
        return f"{host}:{int(port) + 1 if int(port) else 0}" if self.metrics else ""

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

    def add(flag: str, convert: Callable[[str], Any], default: str, text: str) -> None:
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
    add(
        "metrics-listen", _metrics, "",
        "host:port of the control plane's Prometheus metrics; the node's are at the next port",
    )  # fmt: skip
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
    metrics = parsed.pop("metrics_listen")
    return Settings(**parsed, metrics=metrics, app_dirs=tuple(folder.resolve() for folder in named))


def refused(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that says what the launcher decides."""
    return [
        f"{PREFIX}{name} has no effect with make up: {way}"
        for name, way in DECIDED.items()
        if PREFIX + name in environ
    ]


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Return the variables of our prefix that no program reads, most likely misspelt."""
    known = {PREFIX + name for name in (*OWN, *DECIDED, *PASSED_ON, *OF_CLIENTS)}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


def _metrics(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if text and not (colon and host and port.isascii() and port.isdigit() and int(port) < 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT with a port up to 65534")
    return text


def variable_of(flag: str) -> str:
    """Return the environment variable of a flag."""
    return PREFIX + flag.upper().replace("-", "_")
