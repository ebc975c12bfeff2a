"""Flags that are environment variables too, `APPSUPERVISOR_…`, and how their values are read.

A value that is refused ends the process with a sentence: each reader raises ArgumentTypeError for argparse.
"""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import re
from collections.abc import Callable, Mapping
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


class Flags:
    """Adds a flag whose default comes from the environment; argparse checks that like a given one."""

    def __init__(self, parser: argparse.ArgumentParser, variables: Mapping[str, str]) -> None:
        self._parser = parser
        self._variables = variables

    def __call__(self, flag: str, kind: Callable[[str], Any], default: str, text: str) -> None:
        """Add a flag that has one value."""
        name = _variable(flag)
        self._parser.add_argument(
            flag, type=kind, default=self._variables.get(name, default),
            help=f"{text} (default {default or 'none'}; {name})",
        )  # fmt: skip

    def many(self, flag: str, kind: Callable[[str], Any], separator: str, text: str) -> None:
        """Add a flag that may be given several times."""
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

    def switch(self, flag: str, text: str) -> None:
        """Add a flag that is on or off."""
        name = _variable(flag)
        self._parser.add_argument(
            flag,
            action=argparse.BooleanOptionalAction,
            default=self._variables.get(name, "").lower() in {"1", "true", "yes", "on"},
            help=f"{text} ({name})",
        )

    def metrics(self, flag: str) -> None:
        """Add the flag that says where metrics are served."""
        name = _variable(flag)
        self._parser.add_argument(
            flag,
            type=metrics_address,
            default=self._variables.get(name, METRICS),
            help=f"where Prometheus metrics are served, or off (default {METRICS}, or a free port where that "
            f"is taken: the log says which; {name})",
        )


class _Replace(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        seen: set[str] = getattr(namespace, "_given", set())
        items = [*getattr(namespace, self.dest), values] if self.dest in seen else [values]
        setattr(namespace, self.dest, items)
        namespace._given = {*seen, self.dest}


def _variable(flag: str) -> str:
    return PREFIX + flag[2:].replace("-", "_").upper()


def address(text: str) -> Address:
    """Return HOST:PORT, an IPv6 address in brackets."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return Address(host, int(port))


def advertised(text: str) -> Address | None:
    """Return HOST or HOST:PORT, with port 0 where none is named."""
    if not text:
        return None
    bare = text.removeprefix("[").removesuffix("]")
    if _is_ipv6(bare) or not set(text) & set("[]:"):
        return Address(bare, 0)
    found = address(text)
    bracketed = text[0] == "[" and _is_ipv6(found.host)
    if not found.port or (set(text.rpartition(":")[0]) & set("[]:") and not bracketed):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST or HOST:PORT, IPv6 as [::1]:7401 has it")
    return found


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def control_planes(text: str) -> str:
    """Return addresses that are separated by commas."""
    return ",".join(str(address(part.strip())) for part in text.split(",")) if text else ""


def metrics_address(text: str) -> Address | None:
    """Return an address, None for off."""
    return None if text in {"", "off"} else address(text)


def identifier(text: str) -> str:
    """Return an id as resource names have it."""
    if _ID.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be 1 to 63 lower-case letters, digits and inner hyphens, beginning with a letter"
        )
    return text


def directory(text: str) -> Path:
    """Return a directory that is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a directory")
    return path


def label(text: str) -> tuple[str, str]:
    """Return KEY=VALUE as Kubernetes has labels."""
    key, equals, value = text.partition("=")
    if not equals or _LABEL_KEY.fullmatch(key) is None or len(value) > 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE as Kubernetes labels are")
    return key, value


def zone(text: str) -> str:
    """Return the name of a zone."""
    if text and _LABEL_VALUE.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be at most 63 letters, digits and inner `-`, `_` and `.`"
        )
    return text


def network(text: str) -> str:
    """Return an address or a network."""
    try:
        ip_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither an address nor a network such as 10.0.0.0/8"
        ) from None
    return text


def domain(text: str) -> str:
    """Return a host name."""
    if text != "localhost":
        # The front's modules take long: they are loaded while the zygote starts, if they can wait.
        from runtime_node.http.authority import normal_domain  # noqa: PLC0415

        try:
            normal_domain(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a host name") from None
    return text


def count(text: str) -> int:
    """Return a number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1")
    return int(text)


def preload(text: str) -> tuple[str, ...] | None:
    """Return names of modules, none of them for `none`, and None for `usual`."""
    if text in {"usual", "none"}:
        return None if text == "usual" else ()
    names = tuple(part.strip() for part in text.split(","))
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 'usual', 'none' nor modules separated by commas"
        )
    for name in names:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            raise argparse.ArgumentTypeError(f"no module {name!r} is installed")
    return names


def level(text: str) -> str:
    """Return a log level in upper case."""
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise argparse.ArgumentTypeError(f"{text!r} is no log level")
    return text.upper()


def log_format(text: str) -> str:
    """Return the name of a format."""
    if text not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(FORMATS)}")
    return text
