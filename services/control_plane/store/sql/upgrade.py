"""Carries out the migrations that an older catalog lacks. It alone loads Alembic."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from services.control_plane.store.errors import StoreError


def refuse_unknown(current: Collection[str], label: str) -> None:
    """Raise StoreError if a schema is not one of this program's; `label` names the database."""
    known = {script.revision for script in scripts().walk_revisions()}
    if unknown := set(current) - known:
        raise StoreError(
            f"The catalog {label} has the schema {', '.join(sorted(unknown))}, which this program "
            "does not know: a newer one has written it. Start that version, or restore an older backup."
        )


def upgrade(connection: Connection) -> None:
    """Do what `alembic.command.upgrade` does, which would read the migrations again."""

    def steps(revision: Any, _: MigrationContext) -> Any:
        return scripts()._upgrade_revs("head", revision)

    config = Config()
    config.attributes["connection"] = connection
    with EnvironmentContext(config, scripts(), fn=steps):
        scripts().run_env()


@cache
def scripts() -> ScriptDirectory:
    """Return the migrations, read once: reading them takes as long as carrying them out."""
    config = Config()
    config.set_main_option("script_location", "services.control_plane.store.sql:migrations")
    return ScriptDirectory.from_config(config)
