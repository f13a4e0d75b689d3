"""To and from rpc nothing can be copied: what to do instead, as steps in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from celery_results.migration.census import Census

_FROM_RPC: Final = """
Nothing can be copied: rpc sends each result as a message to the client that sent the task, and keeps none.

Stop sending tasks, and let the workers finish: `celery inspect active`, `reserved` and `scheduled` are
empty, and no task is left in the queues.

Let each client fetch what it waits for. What it has not fetched when it ends is lost, as ever with rpc.

Deploy the new backend: workers first, then clients. A client that still runs with rpc never sees the result
of a task that a worker with the new backend has run.

Begin to send tasks again.
"""
_TO_RPC: Final = """
Nothing can be copied: rpc keeps no results. The {results} that are stored stay readable where they are, with
the old settings only.{longest}

Find out who needs what rpc does not offer: a result that is read twice or by another process than the one
that sent its task, saved groups, chords, forget(), states while a task runs.

Stop sending tasks, and let the workers finish: `celery inspect active`, `reserved` and `scheduled` are
empty, no task is left in the queues, and no chord is in flight{chords}.

Let the clients fetch what they wait for, and keep what is to be kept: `celery-results archive`, for
databases.

Deploy RabbitMQ as broker and backend, workers first, then clients: each client reads what it has sent since.

Keep the old store, and an env file that leads to it, until its last result has expired.
"""


def from_rpc() -> tuple[str, ...]:
    """Give the steps of a move away from rpc."""
    return _steps(_FROM_RPC)


def to_rpc(census: Census) -> tuple[str, ...]:
    """Give the steps of a move to rpc, away from a store of which something is known."""
    longest = ""
    if census.longest:
        longest = f" The last one that expires does so in {census.longest / 3600:.1f} hours."
    chords = "" if census.chords is None else f" ({census.chords} now; another plan counts them anew)"
    return _steps(_TO_RPC.format(results=census.results, longest=longest, chords=chords))


def _steps(paragraphs: str) -> tuple[str, ...]:
    return tuple(" ".join(paragraph.split()) for paragraph in paragraphs.strip().split("\n\n"))
