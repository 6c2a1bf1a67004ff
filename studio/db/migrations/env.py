"""Alembic's entry: runs revisions on the connection that `studio.db.migrations.migrate` opened, inside its transaction."""

from __future__ import annotations

from alembic import context

from studio.db.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
