"""A result backend made of two: the primary, which must take every write, and the mirror, which may fail.

result_backend = "celery_results.backends.dual:DualBackend", and what it is made of in
result_backend_transport_options: `stage`, `old`, `new` and `journal` (see `options`). What it promises, and
what it does not: docs/dual-write.md.
"""

from celery_results.backends.dual.backend import DualBackend

__all__ = ["DualBackend"]
