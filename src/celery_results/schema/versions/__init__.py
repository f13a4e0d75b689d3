"""One module for each revision; Alembic reads them as files."""
