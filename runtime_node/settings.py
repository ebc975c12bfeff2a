"""The node's settings, read in one place: flags, each also an environment variable `APPSUPERVISOR_…`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from services.rpc.logs import FORMATS

PREFIX = "APPSUPERVISOR_"
_ID = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LABEL_KEY = re.compile(r"(?:[A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")

_LABEL_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; port 0 asks for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


METRICS = Address("127.0.0.1", 7501)
"""Where metrics are served if nobody says anything else."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Everything a node is told at its start."""

    listen: Address
    http_listen: Address
    control_plane: str
    """`host:port`, several separated by commas; empty for a node that stands alone."""
    environment: str
    node: str
    data_dir: Path
    app_dirs: tuple[Path, ...]
    labels: Mapping[str, str]
    zone: str
    """What fails together with the node; empty for none."""
    advertise: str
    """Host, or `host:port`, that others reach the node's gRPC at; empty for what it listens on."""
    base_domain: str
    max_instances: int
    memory_budget_bytes: int | None
    concurrent_starts: int
    shutdown_timeout: float
    """Seconds for draining every instance at the node's end."""
    trusted_proxies: tuple[str, ...]
    path_hosts: tuple[str, ...]
    """Host names under which apps are found by path and X-App, beside loopback names and addresses."""
    hosts_only: bool
    """Whether apps are found by host name alone."""
    log_level: str
    log_format: str
    metrics_listen: Address | None
    metrics_port_may_vary: bool
    """Whether any port does for metrics where that one is taken: nobody asked for it."""
    echo_app_logs: bool
    """Whether what apps log goes to the node's stderr too."""

    @property
    def node_name(self) -> str:
        """Resource name of the node."""
        return f"environments/{self.environment}/nodes/{self.node}"


def read_settings(
    arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> NodeSettings:
    """Read flags and environment; flags win. Ends the process with a clear sentence on a mistake."""
    variables = os.environ if environ is None else environ
    parser = argparse.ArgumentParser(
        prog="python -m runtime_node",
        description="Hosts many web apps in one process group and reports on them over gRPC.",
        epilog=f"Each flag is also an environment variable: --http-listen is {PREFIX}HTTP_LISTEN. "
        "Lists there are separated by commas, --app-dir's by the system's path separator. "
        "Example: appsupervisor node --control-plane 127.0.0.1:7400 --node node-2 --data-dir data/node-2 "
        "--listen 127.0.0.1:7402 --http-listen 127.0.0.1:8081",
        allow_abbrev=False,
    )
    add = _Adder(parser, variables)
    add("--listen", _address, "127.0.0.1:7401", "where the gRPC API listens; port 0 takes a free one")
    add("--http-listen", _address, "127.0.0.1:8080", "where the apps' HTTP listens; port 0 takes a free one")
    add(
        "--control-plane",
        _control_planes,
        "",
        "host:port of the control plane to join, or several of one catalog's, separated by commas; without "
        "it the node stands alone",
    )
    add("--environment", _id, "default", "environment that the node belongs to")
    add("--node", _id, "node-1", "name of the node, unique in its environment")
    add("--data-dir", Path, "data/node-1", "directory that holds the apps' data; of this node alone")
    add.many("--app-dir", _directory, os.pathsep, "directory to load apps' code from; may be repeated")
    add.many("--label", _label, ",", "label of the node, K=V, to place apps by; may be repeated")
    add("--zone", _zone, "", "what fails together with the node, as a rack: copies are spread over zones")
    add("--advertise", str, "", "HOST or HOST:PORT at which others reach this node, if not where it listens")
    add("--base-domain", _domain, "localhost", "domain under which each app answers as {app}.{base-domain}")
    add("--max-instances", _count, "10000", "the most instances the node accepts")
    add(
        "--memory-budget-bytes", int, "0",
        "memory of the node: beyond it idle ON_REQUEST apps go dormant, and the memory limits of the apps "
        "placed on it stay below it; 0 for no budget",
    )  # fmt: skip
    add("--concurrent-starts", _count, "16", "how many apps start at the same time")
    add("--shutdown-timeout", float, "30", "seconds for draining all apps at the node's end")
    add.many(
        "--trusted-proxy", _network, ",",
        "address or network of a proxy: its Forwarded and X-Forwarded-* reach the apps, from others they are "
        "dropped, and its connections count as those of many clients; may be repeated",
    )  # fmt: skip
    add.many(
        "--path-host", _domain, ",",
        "host name under which apps are also found by path (/apps/{app}/) and by X-App, as they are under "
        "loopback names, IP addresses and the base domain; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--hosts-only",
        action=argparse.BooleanOptionalAction,
        default=variables.get(f"{PREFIX}HOSTS_ONLY", "").lower() in {"1", "true", "yes", "on"},
        help=f"find apps by their own host names alone, never by path or X-App ({PREFIX}HOSTS_ONLY)",
    )
    parser.add_argument(
        "--metrics-listen",
        type=_metrics_address,
        default=variables.get(_variable("--metrics-listen"), METRICS),
        help=f"where Prometheus metrics are served, or off (default {METRICS}, or a free port where that is "
        f"taken: the log says which; {_variable('--metrics-listen')})",
    )
    parser.add_argument(
        "--echo-app-logs",
        action=argparse.BooleanOptionalAction,
        default=variables.get(f"{PREFIX}ECHO_APP_LOGS", "").lower() in {"1", "true", "yes", "on"},
        help=f"write what apps log to the node's own log too ({PREFIX}ECHO_APP_LOGS)",
    )
    add("--log-level", _level, "INFO", "least level that is logged: DEBUG, INFO, WARNING or ERROR")
    add("--log-format", _log_format, "text", "how log lines are written: text or json")
    parsed = parser.parse_args(arguments)
    return NodeSettings(
        listen=parsed.listen,
        http_listen=parsed.http_listen,
        control_plane=parsed.control_plane,
        environment=parsed.environment,
        node=parsed.node,
        data_dir=parsed.data_dir,
        app_dirs=tuple(parsed.app_dir),
        labels=dict(parsed.label),
        zone=parsed.zone,
        advertise=parsed.advertise,
        base_domain=parsed.base_domain,
        max_instances=parsed.max_instances,
        memory_budget_bytes=parsed.memory_budget_bytes or None,
        concurrent_starts=parsed.concurrent_starts,
        shutdown_timeout=parsed.shutdown_timeout,
        trusted_proxies=tuple(parsed.trusted_proxy),
        path_hosts=tuple(parsed.path_host),
        hosts_only=parsed.hosts_only,
        log_level=parsed.log_level,
        log_format=parsed.log_format,
        metrics_listen=parsed.metrics_listen,
        # The default itself: who asks for the same port gets that or none.
        metrics_port_may_vary=parsed.metrics_listen is METRICS,
        echo_app_logs=parsed.echo_app_logs,
    )


class _Adder:
    """Adds a flag whose default comes from the environment; argparse checks that like a given one."""

    def __init__(self, parser: argparse.ArgumentParser, variables: Mapping[str, str]) -> None:
        self._parser = parser
        self._variables = variables

    def __call__(self, flag: str, kind: Callable[[str], Any], default: str, text: str) -> None:
        name = _variable(flag)
        self._parser.add_argument(
            flag, type=kind, default=self._variables.get(name, default),
            help=f"{text} (default {default or 'none'}; {name})",
        )  # fmt: skip

    def many(self, flag: str, kind: Callable[[str], Any], separator: str, text: str) -> None:
        name = _variable(flag)
        given = [part for part in self._variables.get(name, "").split(separator) if part]
        try:
            default = [kind(part) for part in given]
        except argparse.ArgumentTypeError as mistake:
            self._parser.error(f"{name}: {mistake}")
        # A flag given at all replaces what the environment says, instead of adding to it.
        self._parser.add_argument(
            flag,
            type=kind,
            action=_Replace,
            default=default,
            help=f"{text} ({name})",
            metavar=flag[2:].upper(),
        )


class _Replace(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        seen: set[str] = getattr(namespace, "_given", set())
        items = [*getattr(namespace, self.dest), values] if self.dest in seen else [values]
        setattr(namespace, self.dest, items)
        namespace._given = {*seen, self.dest}


def _variable(flag: str) -> str:
    return PREFIX + flag[2:].replace("-", "_").upper()


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return Address(host, int(port))


def _control_planes(text: str) -> str:
    return ",".join(str(_address(part.strip())) for part in text.split(",")) if text else ""


def _metrics_address(text: str) -> Address | None:
    return None if text in {"", "off"} else _address(text)


def _id(text: str) -> str:
    if _ID.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be 1 to 63 lower-case letters, digits and inner hyphens, beginning with a letter"
        )
    return text


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a directory")
    return path


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or _LABEL_KEY.fullmatch(key) is None or len(value) > 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE as Kubernetes labels are")
    return key, value


def _zone(text: str) -> str:
    if text and _LABEL_VALUE.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be at most 63 letters, digits and inner `-`, `_` and `.`"
        )
    return text


def _network(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither an address nor a network such as 10.0.0.0/8"
        ) from None
    return text


def _domain(text: str) -> str:
    if text != "localhost":
        # The front's modules take long: they are loaded while the zygote starts, if they can wait.
        from runtime_node.http.authority import normal_domain  # noqa: PLC0415

        try:
            normal_domain(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a host name") from None
    return text


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1")
    return int(text)


def _level(text: str) -> str:
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise argparse.ArgumentTypeError(f"{text!r} is no log level")
    return text.upper()


def _log_format(text: str) -> str:
    if text not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(FORMATS)}")
    return text
