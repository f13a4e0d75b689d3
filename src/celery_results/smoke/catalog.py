"""The checks by name, in the order of the table; the names are what --only takes and --json gives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from celery_results.smoke import canvas, checks

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_results.smoke.checks import Steps
    from celery_results.smoke.session import Session


class Kind(Enum):
    """What a check needs."""

    WITNESS = auto()  # a result that another host has stored
    TASKS = auto()  # a worker
    REFUSAL = auto()  # nothing but the server
    REFUSAL_OF_A_RESULT = auto()  # a stored result, where this host can store one
    REFUSAL_OF_THE_BROKER = auto()  # a deployed broker with a login of its own


@dataclass(frozen=True)
class Entry:
    """One check; the remedy is for a failure whose message says nothing more."""

    name: str
    title: str
    kind: Kind
    remedy: str
    steps: Callable[[Session], Steps] | None = None
    # For a backend that does not offer it: what shows that it really is so.
    absence: Callable[[Session], Steps] | None = None


def _tasks(
    steps: Callable[[Session], Steps], remedy: str, absence: Callable[[Session], Steps] | None = None
) -> Entry:
    return Entry(steps.__name__, _title(steps), Kind.TASKS, remedy, steps, absence)


def _title(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").splitlines()[0].rstrip(".")


_SAME_STORE = (
    "see that celery.env and client.env name the same store (CELERYCONFIG_RESULT_*), then the worker's log"
)
_BROKER = "see the broker (CELERYCONFIG_BROKER_*): the worker's login must be able to send tasks too"
_GROUPS = "see the server's permissions for groups: the client's login saves, reads and deletes them"
_SERIALIZER = (
    "see CELERYCONFIG_RESULT_SERIALIZER, and result_serializer, result_accept_content in celeryconfig.py"
)
_TLS_SETTINGS = (
    "see the TLS settings that celeryconfig_<backend>.py makes: a certificate and its name must be required"
)
_ACL = "take the permission from this login: run site.yml for the server again"

BROKER_PREFIX = "broker_"

_RESULTS = (
    Entry("witness", "Read the result that another host has stored", Kind.WITNESS, _SAME_STORE),
    _tasks(checks.value, _SAME_STORE),
    _tasks(checks.second_read, _SAME_STORE, checks.single_read),
    _tasks(checks.exception, _SERIALIZER),
    _tasks(checks.retry, _BROKER),
    _tasks(checks.progress_state, _SAME_STORE, checks.progress_message),
    _tasks(canvas.group, _SAME_STORE),
    _tasks(canvas.group_save_restore, _GROUPS),
    _tasks(canvas.chord, _GROUPS),
    _tasks(canvas.chain, _BROKER),
    _tasks(checks.forget, "see the server's permissions: the client's login may delete results"),
    _tasks(checks.expiry, "see result_expires (CELERYCONFIG_RESULT_EXPIRES_SECONDS) and the server's clock"),
    _tasks(checks.large_result, "see the server's limits for the size of a value and its memory"),
    _tasks(checks.json_types, _SERIALIZER),
    Entry(
        "plain_text",
        "Speak to the server without TLS",
        Kind.REFUSAL,
        "close the server's plain port, which <role>_config must not open: run site.yml for the server again",
    ),
    Entry(
        "wrong_password",
        "Log in with a wrong password",
        Kind.REFUSAL,
        "give the login a password on the server",
    ),
    Entry(
        "no_password",
        "Come without a login, or as the default user",
        Kind.REFUSAL,
        "let nobody in without a login or as a default user: run site.yml for the server again",
    ),
    Entry("untrusted_ca", "Trust another authority than the server's", Kind.REFUSAL, _TLS_SETTINGS),
    Entry(
        "wrong_name",
        "Reach the server by a name that its certificate does not bear",
        Kind.REFUSAL,
        _TLS_SETTINGS,
    ),
    Entry("foreign_key", "Use this login outside of Celery's keys", Kind.REFUSAL, _ACL),
    Entry("client_write", "Have the client's login write a result", Kind.REFUSAL_OF_A_RESULT, _ACL),
)
CATALOG = (
    *_RESULTS,
    # The broker is attacked as the result store is, where it is another server or another login.
    *(
        Entry(
            f"{BROKER_PREFIX}{entry.name}", f"Broker: {entry.title}", Kind.REFUSAL_OF_THE_BROKER, entry.remedy
        )
        for entry in _RESULTS
        if entry.kind is Kind.REFUSAL
    ),
)
NAMES = tuple(entry.name for entry in CATALOG)
