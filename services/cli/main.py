"""The program `appsupervisor`: its flags, its commands, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Annotated

import typer
from rich.text import Text

from services.cli import (
    apply,
    apps,
    certificates,
    database_servers,
    fleet,
    nodes,
    programs,
    retained,
    streams,
)
from services.cli.errors import CliError, Exit
from services.cli.output import Format, Output
from services.cli.session import Session
from services.spec.versions import VERSION

app = typer.Typer(
    name="appsupervisor",
    help="Create, watch and manage isolated web apps. Works against any AppSupervisor server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"appsupervisor {VERSION}")  # noqa: T201 - what was asked for
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    address: Annotated[
        str,
        typer.Option(
            help="host:port of the control plane; several separated by commas.",
            envvar="APPSUPERVISOR_ADDRESS",
        ),
    ] = "",
    context_name: Annotated[
        str, typer.Option("--context", help="A named control plane.", envvar="APPSUPERVISOR_CONTEXT")
    ] = "",
    output: Annotated[Format, typer.Option("--output", "-o", help="How answers are written.")] = Format.TABLE,
    jmes: Annotated[
        str, typer.Option("--jmespath", help="Write only this part of the answer, such as '[].name'.")
    ] = "",
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show this program's version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Create, watch and manage isolated web apps."""
    context.obj = Session(address=address, context=context_name, form=output, query=jmes)


for group in (apps, retained, apply, streams, fleet, nodes, database_servers, certificates, programs):
    group.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Run one command line and end the process with its exit status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command line; return the exit status. What goes wrong is one sentence on stderr."""
    try:
        _command()(_hoisted(arguments))
    except CliError as failure:
        return _tell(failure)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.DONE
    return Exit.DONE


@cache
def _command() -> Callable[[list[str]], object]:
    """Return all commands, made once: that takes 45 ms, more than most of them."""
    return typer.main.get_command(app)


def _tell(failure: CliError) -> int:
    notes = Output().notes
    reason = f" ({failure.reason})" if failure.reason else ""
    notes.print(Text.assemble(("error: ", "bold red"), failure.sentence, (reason, "dim")))
    if failure.remedy:
        notes.print(Text(failure.remedy))
    return failure.code


def _hoisted(arguments: list[str]) -> list[str]:
    """Return the arguments with the program's own flags in front: they may stand after the command.

    `nodes list` becomes `nodes`, for a group of commands by itself lists what there is.
    """
    own = {"-o", "--output", "--address", "--context", "--jmespath"}
    command = next((word for word in arguments if not word.startswith("-")), "")
    if command in programs.PROGRAMS:
        return arguments
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in own:
            front += [word, *[value for value in [next(words, None)] if value is not None]]
        elif word.partition("=")[0] in own:
            front.append(word)
        else:
            rest.append(word)
    if rest[1:2] == ["list"] and rest[0] in {group.name for group in app.registered_groups}:
        del rest[1]
    return front + rest
