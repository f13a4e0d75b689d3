"""Chords in flight, as a Redis that owns them shows it.

Celery 5.7 (celery/backends/redis.py) sets `<group>.s`, the number of parts, on the side that creates a chord,
right after its header was sent, and deletes it after its body was sent or the chord has failed. `.t` (tasks
added meanwhile), `.j` (results of parts) and `.d` (which parts) come with the parts, also on a side that does
not own the chord, and stay after a failure; `.c` (who sends the body) comes with the last part and stays for
five minutes. So `.s` alone tells of a chord in flight; of one whose parts were lost it stays until
`result_chord_expires`, else `result_expires`, is over. Databases keep nothing: celery.chord_unlock polls.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

from celery import Celery

if TYPE_CHECKING:
    from celery_results.stores.endpoint import Endpoint

_SCAN_COUNT: Final = 2000
_SIZE: Final = b".s"


class TooManyKeysError(Exception):
    """The time was up before all keys were seen."""


def in_flight(endpoint: Endpoint, seconds: float) -> int | None:
    """Count them; None for a database. Raises TooManyKeysError and what redis-py raises."""
    if endpoint.storage is not None:
        return None
    app = Celery("chords", set_as_current=False)
    app.config_from_object({**endpoint.settings, "redis_socket_timeout": seconds})
    backend: Any = app.backend
    prefix = bytes(backend.group_keyprefix)
    pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*" + _SIZE
    end = time.monotonic() + seconds
    found: set[bytes] = set()  # SCAN may name a key twice
    cursor = 0
    try:
        while True:
            cursor, keys = backend.client.scan(cursor, match=pattern, count=_SCAN_COUNT)
            found.update(keys)
            if not cursor:
                return len(found)
            if time.monotonic() > end:
                raise TooManyKeysError
    finally:
        backend.client.close()
