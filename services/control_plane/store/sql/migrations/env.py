"""Runs migrations on the connection given by the store; there is no other way to run them."""

from alembic import context

from services.control_plane.store.sql.tables import SCHEMA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SCHEMA.metadata,
    transactional_ddl=True,  # SQLite's DDL is transactional once BEGIN is explicit
)
with context.begin_transaction():
    context.run_migrations()
