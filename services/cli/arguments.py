"""What several commands take: the arguments and options, and what their texts mean."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.completion import complete_app
from services.cli.errors import CliError, Exit

AppArgument = Annotated[
    str, typer.Argument(help="The app's id.", autocompletion=complete_app, show_default=False)
]
SomeApp = Annotated[
    str,
    typer.Argument(
        help="The app's id, unless --selector or --filter chooses.",
        autocompletion=complete_app,
        show_default=False,
    ),
]
Selector = Annotated[str, typer.Option("--selector", "-l", help="KEY=VALUE[,KEY=VALUE…] of labels")]
Filter = Annotated[str, typer.Option("--filter", help="AIP-160, such as state = FAILED")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done, or return at once.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait.", min=0)]
Etag = Annotated[str, typer.Option(help="Only if this is still the app's etag.")]
AcceptDataLoss = Annotated[
    bool, typer.Option("--accept-data-loss", help="Begin anew if its data is lost: what it had is given up.")
]
DryRun = Annotated[
    bool, typer.Option("--validate-only", "--dry-run", help="Check everything, change nothing.")
]


def combined(filter_text: str, selector: str) -> str:
    """Return one filter that says what a filter and a label selector say. Raises CliError."""
    parts = [f"({filter_text})"] if filter_text else []
    for pair in filter(None, selector.split(",")):
        key, value = key_and_value("--selector", pair)
        parts.append(
            f'labels."{key}" = "{value}"' if "." in key or "/" in key else f'labels.{key} = "{value}"'
        )
    return " AND ".join(parts)


def key_and_value(option: str, text: str) -> tuple[str, str]:
    """Return what stands on both sides of the first `=` in an option. Raises CliError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise CliError(f"{option} {text!r}: write KEY=VALUE", Exit.USAGE)
    return key, value
