"""A conversation may have tools; answers call them, and results are messages of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("conversations", sa.Column("tools", sa.String(), nullable=False, server_default=""))
    op.add_column("messages", sa.Column("tool_calls", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("messages", sa.Column("tool_call_id", sa.String(), nullable=False, server_default=""))
