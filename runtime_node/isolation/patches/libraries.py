"""Libraries that keep one state per process, and get one per instance here: what is known of their insides.

Each looks at what it changes first and leaves a library alone whose insides are not what is known.
"""

from __future__ import annotations

from runtime_node.isolation.on_import import when_imported
from runtime_node.isolation.patches import (
    account_libraries,
    alembic_state,
    logging_libraries,
    settings_libraries,
)


def install() -> None:
    """Have each patched when it is imported."""
    when_imported("alembic.util.langhelpers", alembic_state.keep_apart)
    when_imported("loguru", logging_libraries.keep_loguru_apart)
    when_imported("structlog._config", logging_libraries.keep_structlog_apart)
    when_imported("pydantic_settings.sources.providers.env", settings_libraries.tell_what_is_withheld)
    when_imported("sentry_sdk.scope", account_libraries.keep_sentry_apart)
    when_imported("celery._state", account_libraries.keep_celery_apart)
    when_imported("boto3", account_libraries.keep_boto3_apart)
    for name in account_libraries.SETTINGS:
        when_imported(name, account_libraries.guard_settings)
