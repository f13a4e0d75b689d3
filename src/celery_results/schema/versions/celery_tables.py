"""Celery 5.7's tables, from nothing or from those that any Celery 5.x made.

Each change is found by looking at what is there, so an upgrade that was interrupted is simply run again.
"""

from alembic import context

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make what is missing."""
    context.config.attributes["converge"]()


def downgrade() -> None:
    """Refuse: Celery of any 5.x works on these tables as they are."""
    raise NotImplementedError("there is no way back and no need for one; restore a backup instead")
