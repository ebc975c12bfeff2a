"""Commands on many apps, by their documents: apply, diff and export."""

from __future__ import annotations

import difflib
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Annotated

import typer
from google.longrunning.operations_pb2 import Operation
from rich.text import Text

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from services.cli import views
from services.cli.apps import confirm
from services.cli.arguments import Timeout, Wait, combined
from services.cli.client import notice_of, short
from services.cli.errors import CliError, Exit
from services.cli.manifests import Manifest, exported, read_manifests
from services.cli.output import Format, dump_yaml
from services.cli.session import Session, session_of
from services.cli.together import each

Files = Annotated[
    list[str],
    typer.Option("--file", "-f", help="File, folder, or - for stdin; may be repeated.", show_default=False),
]
Selector = Annotated[str, typer.Option("--selector", "-l", help="KEY=VALUE[,KEY=VALUE…] of labels")]


_SHOWN = 30
"""Apps that are shown by name; of more their number is enough."""
_SHOWN_FAILURES = 20
_COME_BACK = "`appsupervisor operations` shows them."


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for name, command in (("apply", apply), ("diff", diff), ("export", export)):
        app.command(name, rich_help_panel="Manifests")(command)


def apply(
    context: typer.Context,
    file: Files,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete apps of --selector that no document names.")
    ] = False,
    selector: Selector = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before pruning.")] = False,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", "--dry-run", help="Check everything, change nothing.")
    ] = False,
    wait: Wait = True,
    timeout: Timeout = 120.0,
) -> None:
    """Make apps as YAML documents want them; what a document does not name is left alone.

    Example: appsupervisor apply -f apps.yaml
    """
    if prune and not selector:
        raise CliError("--prune needs --selector: it deletes only apps with those labels.", Exit.USAGE)
    session = session_of(context)
    manifests = read_manifests(file)
    doomed = _unnamed(session, manifests, selector) if prune else []
    if doomed:
        session.output.note(
            "\n".join(["These apps are named by no document:", *(f"  {short(one.name)}" for one in doomed)])
        )
        if not yes and not validate_only:
            confirm(session, f"Delete {len(doomed)} app{'s' * (len(doomed) != 1)}? The data stays.")
    # All are checked before the first is changed.
    each(session, "checked", lambda one, _: _call(session, one, validate_only=True), manifests)
    if validate_only:
        session.output.note(f"{len(manifests)} documents are valid; nothing was changed.")
        return
    operations = each(session, "asked for", lambda one, _: _call(session, one), manifests)
    begun = [(one.app.name, operation) for one, operation in zip(manifests, operations, strict=True)]
    for app in doomed:
        request = catalog.DeleteAppRequest(name=app.name, etag=app.etag, request_id=str(uuid.uuid4()))
        begun.append((app.name, session.client.call(session.client.catalog.DeleteApp, request)))
    if not wait:
        session.output.note(f"{len(begun)} operations go on; `appsupervisor operations` shows them.")
        return
    _finish(session, begun, timeout)


def diff(context: typer.Context, file: Files) -> None:
    """Show what apply would change; exit status 1 if it would change anything.

    Example: appsupervisor diff -f apps.yaml
    """
    session = session_of(context)
    changed = False
    for manifest in read_manifests(file):
        before = _current(session, manifest.app.name)
        after = session.client.result(_call(session, manifest, validate_only=True))
        lines = _compared(before, after, manifest)
        changed = changed or bool(lines)
        for line in lines:
            style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
            session.output.console.print(Text(line, style=style))
    raise typer.Exit(int(changed))


def export(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Ids of apps; none for all.", show_default=False)] = [],  # noqa: B006
    selector: Selector = "",
) -> None:
    """Write apps as documents that apply reads. Secrets are not in them: they are never read back.

    Example: appsupervisor export shop
    """
    session = session_of(context)
    apps = (
        (session.client.app(name) for name in names) if names else session.client.apps(combined("", selector))
    )
    for number, app in enumerate(apps):
        print(("---\n" if number else "") + dump_yaml(exported(app)), end="")  # noqa: T201 - what was asked for


def _call(session: Session, manifest: Manifest, *, validate_only: bool = False) -> Operation:
    request = catalog.UpdateAppRequest(
        app=manifest.app, allow_missing=True, validate_only=validate_only,
        request_id="" if validate_only else str(uuid.uuid4()),
    )  # fmt: skip
    request.update_mask.paths.extend(manifest.paths)
    try:
        return session.client.call(session.client.catalog.UpdateApp, request)
    except CliError as refused:
        raise CliError(
            f"{manifest.source}: {refused.sentence}", refused.code, remedy=refused.remedy
        ) from None


def _current(session: Session, name: str) -> catalog.App | None:
    try:
        return session.client.app(name)
    except CliError as missing:
        if missing.code is Exit.NOT_FOUND:
            return None
        raise


def _unnamed(session: Session, manifests: Sequence[Manifest], selector: str) -> list[catalog.App]:
    named = {manifest.app.name for manifest in manifests}
    return [app for app in session.client.apps(combined("", selector)) if app.name not in named]


def _compared(before: catalog.App | None, after: catalog.App, manifest: Manifest) -> list[str]:
    old = [] if before is None else dump_yaml(exported(before)).splitlines()
    new = dump_yaml(exported(after)).splitlines()
    name = short(after.name)
    lines = list(
        difflib.unified_diff(old, new, f"{name} (is)", f"{name} ({manifest.source})", lineterm="", n=2)
    )
    if manifest.app.secret_env:
        lines.append(f"+ secret_env of {name}: {', '.join(sorted(manifest.app.secret_env))} (not compared)")
    return lines


def _finish(session: Session, begun: Sequence[tuple[str, Operation]], timeout: float) -> None:
    """Wait for all, with one bar over all of them; then tell each failure. Raises CliError if one failed."""
    deadline = time.monotonic() + timeout
    noticed: list[str] = []

    def result(one: tuple[str, Operation], ended: threading.Event) -> catalog.App | CliError:
        def told(_: Operation) -> None:
            if ended.is_set():
                raise CliError("Nobody waits any more.")

        try:
            left = max(0.0, deadline - time.monotonic())
            operation = session.client.wait(one[1], left, told)
            app = session.client.result(operation)
            if notice := notice_of(operation):
                noticed.append(f"{short(one[0])}: {notice}")
            return app
        except CliError as failure:
            return failure

    try:
        results = each(session, "done", result, begun)
    except KeyboardInterrupt:
        raise CliError(f"{len(begun)} operations go on.", Exit.TIMED_OUT, remedy=_COME_BACK) from None
    done = [one for one in results if isinstance(one, catalog.App)]
    if session.output.form in (Format.JSON, Format.YAML, Format.NAME) or len(done) <= _SHOWN:
        session.output.many(done, views.APPS)
    else:
        session.output.note(f"{len(done)} apps are as their documents want them.")
    for notice in sorted(noticed)[:_SHOWN]:
        session.output.note(notice)
    if len(noticed) > _SHOWN:
        session.output.note(f"… and {len(noticed) - _SHOWN} more")
    failures = [
        (name, one) for (name, _), one in zip(begun, results, strict=True) if isinstance(one, CliError)
    ]
    failed = [(name, one) for name, one in failures if one.code is not Exit.TIMED_OUT]
    if failed:
        lines = [f"  {short(name)}: {one.sentence}" for name, one in failed[:_SHOWN_FAILURES]]
        raise CliError("\n".join([f"{len(failed)} of {len(begun)} failed:", *lines]))
    if failures:
        sentence = f"{len(failures)} of {len(begun)} are not done after {timeout:g} s; they go on."
        raise CliError(sentence, Exit.TIMED_OUT, remedy=_COME_BACK)
