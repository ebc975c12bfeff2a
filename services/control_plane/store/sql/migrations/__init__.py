"""Alembic's migrations of the catalog: run in the process, when it opens its database."""
