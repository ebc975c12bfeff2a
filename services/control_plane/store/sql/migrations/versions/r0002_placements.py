"""Placements: the copies of apps on nodes, each with the spec pinned to it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "placements",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("app", sa.String(), sa.ForeignKey("apps.name", ondelete="CASCADE"), nullable=False),
        sa.Column("app_uid", sa.String(), nullable=False),
        sa.Column("replica", sa.Integer(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("role", sa.Integer(), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("has_data", sa.Boolean(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_placements_app", "placements", ["app"])


def downgrade() -> None:
    """Refuse: an older program refuses a newer catalog; a backup is the way back."""
    raise NotImplementedError("The catalog's schema only goes forward; restore a backup instead.")
