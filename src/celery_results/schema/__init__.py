"""The tables that Celery's database backend uses, made and kept by their owner with versioned migrations.

Runs as ``python3 -m celery_results.schema`` in the package and as ``python3 -m schema`` where this directory
alone was copied to a server: it imports nothing but itself, Alembic (1.8 or later) and SQLAlchemy (1.4.46 or
later).
"""
