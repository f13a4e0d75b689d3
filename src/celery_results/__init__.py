"""Prove, diagnose and migrate Celery result backends."""

__version__ = "0.1.0"
