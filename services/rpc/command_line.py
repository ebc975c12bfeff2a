"""A program's settings, read from flags and environment; a mistake ends it with the flag and the rule."""

from __future__ import annotations

import ipaddress
from argparse import ArgumentParser
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource

S = TypeVar("S", bound=BaseSettings)


def read_settings(kind: type[S], program: str, arguments: list[str] | None, **options: Any) -> S:
    """Return a program's settings, by default of the process's own arguments; `options` are the source's."""
    source = CliSettingsSource[S](
        kind,
        cli_prog_name=program,
        cli_parse_args=arguments if arguments is not None else True,
        cli_kebab_case=True,
        cli_exit_on_error=True,
        **options,
    )
    try:
        return kind(_cli_settings_source=source)
    except ValidationError as refused:
        mistakes = (
            f"{_flag(str(one['loc'][0]))}: {one['msg'].removeprefix('Value error, ')}"
            for one in refused.errors()
        )
        parser: ArgumentParser = source.root_parser  # type: ignore[assignment]
        parser.error("; ".join(mistakes))


def checked_address(text: str, example: int) -> str:
    """Return an address as it is. Raises ValueError if it is not HOST:PORT; `example` is a port to show."""
    host, colon, port = text.rpartition(":")
    # gRPC would take the rest of a port beyond 65535, and listen somewhere else.
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{text!r} is not HOST:PORT")
    # It would be read as another address, with another port.
    if set(host) & set("[]:") and not (host[0] == "[" and host[-1] == "]" and _is_ipv6(host[1:-1])):
        raise ValueError(f"{text!r} has no IPv6 address in brackets before its port, as [::1]:{example} has")
    return text


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')} (APPSUPERVISOR_{field.upper()})"
