"""What the flags before a command say, kept for the command: the client and the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import typer
from google.longrunning.operations_pb2 import Operation
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.cli.client import Client, metadata_of, notice_of, subject_of
from services.cli.contexts import Context, read_contexts
from services.cli.errors import CliError, Exit
from services.cli.output import Format, Output

BAR = (
    TextColumn("{task.description}"),
    BarColumn(24),
    TextColumn("{task.percentage:>3.0f}% {task.fields[step]}"),
    TimeElapsedColumn(),
)


@dataclass
class Session:
    """One run of the command line."""

    address: str = ""
    context: str = ""
    form: Format = Format.TABLE
    query: str = ""

    @cached_property
    def output(self) -> Output:
        """Where answers go."""
        return Output(self.form, self.query)

    @cached_property
    def client(self) -> Client:
        """The control plane that was named: by --address, else by a context, else the usual address."""
        return Client(Context(self.address) if self.address else read_contexts().chosen(self.context))

    def finish(self, operation: Operation, wait: bool, timeout: float) -> App | None:
        """Wait for an operation with a bar, and return its app; None if it was not to be waited for.

        Ctrl-C leaves it going and says how to come back. Raises CliError with what it failed of.
        """
        done = self.finished(operation, wait, timeout)
        if done is None:
            return None
        app = self.client.result(done)
        if notice := notice_of(done):
            self.output.note(notice)
        return app

    def finished(
        self,
        operation: Operation,
        wait: bool,
        timeout: float,
        meanwhile: Callable[[Operation], None] = lambda _: None,
    ) -> Operation | None:
        """Return an operation once it is done, whatever came of it; `meanwhile` hears how it goes on.

        Otherwise as `finish`.
        """
        if not wait:
            self.output.note(
                f"{operation.name} goes on; `appsupervisor wait {operation.name}` comes back to it."
            )
            return None
        try:
            with self._telling(operation) as told:

                def hear(now: Operation) -> None:
                    meanwhile(now)
                    told(now)

                return self.client.wait(operation, timeout, hear)
        except CliError as late:
            if late.code is Exit.TIMED_OUT:
                late.sentence = f"{late.sentence} {self._so_far(operation)}".strip()
            raise
        except KeyboardInterrupt:
            raise CliError(
                f"{operation.name} goes on.",
                Exit.TIMED_OUT,
                remedy=f"`appsupervisor wait {operation.name}` comes back to it.",
            ) from None

    def _so_far(self, operation: Operation) -> str:
        """Return why an app is not there yet; empty where it does not say."""
        target = metadata_of(operation).target
        if not target.startswith("apps/"):
            return ""
        try:
            conditions = self.client.app(target).conditions
        except CliError:
            return ""
        ready = next((it for it in conditions if it.type == "Ready" and it.status != Condition.MET), None)
        return f"{target}: {ready.message}" if ready is not None and ready.message else ""

    @contextmanager
    def _telling(self, operation: Operation) -> Iterator[Callable[[Operation], None]]:
        if not self.output.interactive or operation.done:
            yield lambda _: None
            return
        about = metadata_of(operation)
        verb = about.verb.removeprefix("batch_")
        with Progress(*BAR, console=self.output.notes, transient=True) as progress:
            task = progress.add_task(f"{verb} {subject_of(operation)}", total=100, step=about.step)

            def told(now: Operation) -> None:
                metadata = metadata_of(now)
                progress.update(task, completed=metadata.progress_percent, step=metadata.step)

            told(operation)
            yield told


def session_of(context: typer.Context) -> Session:
    """Return the session of a command."""
    session = context.find_object(Session)
    assert session is not None, "the callback of the program makes it"
    return session
