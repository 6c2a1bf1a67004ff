"""Order and pause of the queue, planned steps, and what would mend a failure."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "queue_states",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("paused_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rank", sa.Double(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("planned_steps", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("cause", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("remedy", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("is_halved", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.create_index("jobs_by_parent", ["parent_id"], unique=False)
    op.execute("UPDATE jobs SET rank = created_at")
