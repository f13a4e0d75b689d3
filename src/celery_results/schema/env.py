"""Alembic's environment: it is handed an open connection, and never opens one itself."""

from alembic import context

from_outside = context.config.attributes

context.configure(
    connection=from_outside["connection"],
    version_table=from_outside["version_table"],
    version_table_schema=from_outside["version_schema"],
    # Each step is one transaction, or in none where the server demands that: see the dialects.
    transactional_ddl=False,
)
context.run_migrations()
