"""What a copy cannot take along, counted by field."""

from __future__ import annotations

from collections import Counter


class Lossy(Counter[str]):
    """How many results lose what: a field's name, or what happens to it.

    group_id, parent_id     no column in Celery's tables; Celery reads them from no SQL backend either
    name, worker, queue     cut to the 155 characters of their column
    traceback               its NUL characters and half surrogates replaced: no text column takes them
    date_done               its microseconds cut by a column without them
    expiry                  would expire at another time: the row's age decides, not the key's own TTL
    never_expires           had no TTL, and expires with the others on the target
    field:<name>            of a custom backend: no column
    """
