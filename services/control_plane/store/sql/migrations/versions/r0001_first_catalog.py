"""The first catalog."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "meta",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("catalog_id", sa.String(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("oldest_revision", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column("revision", sa.BigInteger(), primary_key=True),
        sa.Column("kind", sa.String(), primary_key=True),
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "environments",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("environment", sa.String(), sa.ForeignKey("environments.name"), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_nodes_environment", "nodes", ["environment"])
    op.create_table(
        "apps",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("uid", sa.String(), nullable=False, unique=True),
        sa.Column("environment", sa.String(), sa.ForeignKey("environments.name"), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("desired_state", sa.Integer(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("target_generation", sa.BigInteger(), nullable=False),
        sa.Column("target_epoch", sa.BigInteger(), nullable=False),
        sa.Column("served_generation", sa.BigInteger()),
        sa.Column("served_epoch", sa.BigInteger()),
        sa.Column("failed_generation", sa.BigInteger()),
        sa.Column("failed_epoch", sa.BigInteger()),
        sa.Column("deleting", sa.Integer(), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.LargeBinary(), nullable=False),
        sa.Column("served_spec", sa.LargeBinary()),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_apps_environment", "apps", ["environment"])
    op.create_table(
        "app_domains",
        sa.Column("domain", sa.String(), primary_key=True),
        sa.Column("app", sa.String(), sa.ForeignKey("apps.name", ondelete="CASCADE"), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_app_domains_app", "app_domains", ["app"])
    op.create_table(
        "operations",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("app", sa.String(), nullable=False),
        sa.Column("app_uid", sa.String(), nullable=False),
        sa.Column("verb", sa.String(), nullable=False),
        sa.Column("goal_generation", sa.BigInteger(), nullable=False),
        sa.Column("goal_epoch", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.Column("error", sa.LargeBinary()),
        sa.Column("response", sa.LargeBinary()),
        sa.Column("expire_time", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_operations_expire_time", "operations", ["expire_time"])
    op.create_table(
        "app_events",
        sa.Column("app", sa.String(), primary_key=True),
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(), primary_key=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_requests_expire_time", "requests", ["expire_time"])


def downgrade() -> None:
    """Refuse: an older program refuses a newer catalog; a backup is the way back."""
    raise NotImplementedError("The catalog's schema only goes forward; restore a backup instead.")
