"""Any replica writes: histories, each writer's last commit, and who leads."""

import sqlalchemy as sa
from alembic import op

from services.control_plane.store.history import new_history

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables; what is there belongs to a first history."""
    histories = op.create_table(
        "histories",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("after", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "writers",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
    )
    leadership = op.create_table(
        "leadership",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=False),
    )
    first = new_history()
    op.add_column("meta", sa.Column("history", sa.String(), nullable=False, server_default=first))
    op.add_column("meta", sa.Column("term", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("apps", sa.Column("history", sa.String(), nullable=False, server_default=""))
    op.bulk_insert(histories, [{"id": first, "after": 0, "time": 0}])
    op.bulk_insert(leadership, [{"id": 1, "holder": "", "address": "", "term": 0, "expire_time": 0}])


def downgrade() -> None:
    """Refuse: an older program refuses a newer catalog; a backup is the way back."""
    raise NotImplementedError("The catalog's schema only goes forward; restore a backup instead.")
