"""All apps' events in their order: what a watch of them reads."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index; a timeline is found by its app, all of them by their ids."""
    op.create_index("ix_app_events_id", "app_events", ["id"])


def downgrade() -> None:
    """Refuse: an older program refuses a newer catalog; a backup is the way back."""
    raise NotImplementedError("The catalog's schema only goes forward; restore a backup instead.")
