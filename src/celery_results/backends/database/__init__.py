"""A result backend for PostgreSQL, MySQL, MariaDB and SQLite on the tables of Celery 5.7.

result_backend = "celery_results.backends.database:DatabaseBackend+postgresql+psycopg://..." (also
mysql+pymysql:// and sqlite:////absolute/path). What it does otherwise than Celery's own class, and every
setting that it honours: docs/database-backend.md.
"""

from celery_results.backends.database.backend import DatabaseBackend

__all__ = ["DatabaseBackend"]
