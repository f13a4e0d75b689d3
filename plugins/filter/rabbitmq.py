"""What role rabbitmq computes: hashes of passwords, definitions, settings, and who serves whom."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SALT_BYTES = 4
# RabbitMQ 4.3 denies queues that are neither durable nor exclusive (its release notes). Celery before 5.7
# declares such for replies, events and remote control (celery pull request 10290).
FIRST_DENYING = (4, 3)
FIRST_DENYING_HERE = (4, 0)
FIRST_CELERY = (5, 7)
PERMIT = "deprecated_features.permit.transient_nonexcl_queues"
KEY = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_$-]+)*")
SIZES = {"": 1, "k": 2**10, "kb": 10**3, "kib": 2**10, "m": 2**20, "mb": 10**6, "mib": 2**20}
SIZES |= {"g": 2**30, "gb": 10**9, "gib": 2**30, "t": 2**40, "tb": 10**12, "tib": 2**40}
SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")
PIN = re.compile(
    r"^\s*celery\s*(?:\[[^\]]*\])?\s*((?:[<>=!~]=?=?\s*[0-9][0-9.]*[^,;#\s]*\s*,?\s*)+)", re.IGNORECASE
)
BOUND = re.compile(r"(===?|~=|<=?|>=?|!=)\s*([0-9]+)(?:\.([0-9]+))?")


def rabbitmq_password_hash(secret: str, login: str) -> str:
    """Return a secret as definitions have it: base64 of a salt and SHA-256 of salt and secret.

    The salt follows from login and secret, so the same secret gives the same text and a run without a new one
    changes nothing; it differs for two logins with one secret. (RabbitMQ: "Credentials and Passwords",
    algorithm rabbit_password_hashing_sha256.)
    """
    salt = hashlib.sha256(f"celery-results {login} {secret}".encode()).digest()[:SALT_BYTES]
    return base64.b64encode(salt + hashlib.sha256(salt + secret.encode()).digest()).decode()


def rabbitmq_users(logins: Iterable[Mapping[str, str]], secrets: Iterable[str]) -> list[dict[str, Any]]:
    """Return the logins as definitions have them, with the hashes of their secrets and without a tag."""
    return [
        {
            "name": login["name"],
            "password_hash": rabbitmq_password_hash(secret, login["name"]),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": [],
            "limits": {},
        }
        for login, secret in zip(logins, secrets, strict=True)
    ]


def rabbitmq_permissions(logins: Iterable[Mapping[str, str]], vhost: str) -> list[dict[str, str]]:
    """Return what the logins may do in a virtual host, as definitions have it."""
    return [
        {"user": login["name"], "vhost": vhost}
        | {right: login[right] for right in ("configure", "write", "read")}
        for login in logins
    ]


def rabbitmq_task_queues(names: Iterable[str], vhost: str, queue_type: str) -> list[dict[str, Any]]:
    """Return the queues of tasks as a worker declares them; other arguments would get it refused (406)."""
    arguments = {"x-queue-type": "quorum"} if queue_type == "quorum" else {}
    # The type is for the comparison with what is there; a node takes it from the arguments.
    lasting = {"vhost": vhost, "durable": True, "auto_delete": False, "type": queue_type}
    return [{"name": name, "arguments": arguments, **lasting} for name in names]


def rabbitmq_task_exchanges(names: Iterable[str], vhost: str) -> list[dict[str, Any]]:
    """Return the exchanges that tasks are sent to, of the type that Celery's delayed delivery needs."""
    lasting = {"vhost": vhost, "type": "topic", "durable": True, "auto_delete": False, "arguments": {}}
    return [{"name": name, **lasting} for name in names]


def rabbitmq_task_bindings(names: Iterable[str], vhost: str) -> list[dict[str, Any]]:
    """Return what brings a task from its exchange into its queue."""
    common = {"vhost": vhost, "destination_type": "queue", "arguments": {}}
    return [{"source": name, "destination": name, "routing_key": name, **common} for name in names]


def rabbitmq_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return keys and values as rabbitmq.conf writes them; of a list they become key.1, key.2 and so on."""
    flat = {}
    for key, value in config.items():
        items = (
            {f"{key}.{i}": item for i, item in enumerate(value, 1)}
            if isinstance(value, list)
            else {key: value}
        )
        for name, item in items.items():
            flat[name] = str(item).lower() if isinstance(item, bool) else str(item)
    return flat


def rabbitmq_bad_keys(config: Mapping[str, Any]) -> list[str]:
    """Name what cannot be written: no key of rabbitmq.conf; no text, number, true/false or list of them."""

    def is_good(value: object) -> bool:
        if isinstance(value, list):
            return bool(value) and all(not isinstance(item, list) and is_good(item) for item in value)
        # A # begins a comment.
        return isinstance(value, str | int | float) and not re.search(r"[\r\n#]|^\s*$", str(value))

    return [str(key) for key, value in config.items() if not KEY.fullmatch(str(key)) or not is_good(value)]


def rabbitmq_bytes(size: object) -> int:
    """Return a size such as 512MB or 2GiB in bytes; 0 for what is none."""
    found = SIZE.fullmatch(str(size).strip())
    return int(found[1]) * SIZES.get(found[2].lower(), 0) if found else 0


def rabbitmq_celery_refusal(version: str, lock: str, texts: Iterable[str], config: Mapping[str, Any]) -> str:
    """Say why this release and the Celery of the hosts cannot work together; empty if they can.

    `version` is RabbitMQ's, as 4.0.5, or empty where nobody knows yet; `lock` is the text of the locked
    requirements; `texts` are requirements of the user's own, which are installed after them and so win.
    """
    if not version:
        return ""
    server = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    oldest = oldest_celery(lock) or FIRST_CELERY
    own = [found for text in texts if (found := oldest_celery(text))]
    celery = min(own) if own else oldest
    if celery >= FIRST_CELERY or server < FIRST_DENYING_HERE:
        return ""
    asked = f"Celery {celery[0]}.{celery[1]} (celery_python_packages or celery_requirements_file)"
    why = "declares queues for replies, events and remote control that are neither durable nor exclusive"
    if server >= FIRST_DENYING:
        return (
            f"RabbitMQ {version} cannot serve {asked}: that {why}, and RabbitMQ 4.3 and later refuse "
            "those, so that workers die. Take Celery 5.7 or later, or a RabbitMQ before 4.3."
        )
    if str(config.get(PERMIT, "")).lower() == "true":
        return ""
    return (
        f"This role has RabbitMQ {version} refuse what {asked} needs: it {why}. Take Celery 5.7 or later, or "
        f"set rabbitmq_config: {{{PERMIT}: true}} until you do."
    )


def oldest_celery(text: str) -> tuple[int, int] | None:
    """Return the lowest release of Celery that requirements pin or end below; None if they do neither."""
    lowest = None
    for line in text.splitlines():
        pin = PIN.match(line)
        if not pin:
            continue
        for operator, major, minor in BOUND.findall(pin[1]):
            release = (int(major), int(minor or 0))
            # A floor alone brings the newest; a ceiling or an exact release decides.
            if operator == "<":
                release = (release[0], release[1] - 1) if release[1] else (release[0] - 1, 99)
            if operator not in {">", ">=", "!="}:
                lowest = min(lowest, release) if lowest else release
    return lowest


class FilterModule:
    """The filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {
            "rabbitmq_bad_keys": rabbitmq_bad_keys,
            "rabbitmq_bytes": rabbitmq_bytes,
            "rabbitmq_celery_refusal": rabbitmq_celery_refusal,
            "rabbitmq_password_hash": rabbitmq_password_hash,
            "rabbitmq_permissions": rabbitmq_permissions,
            "rabbitmq_settings": rabbitmq_settings,
            "rabbitmq_task_bindings": rabbitmq_task_bindings,
            "rabbitmq_task_exchanges": rabbitmq_task_exchanges,
            "rabbitmq_task_queues": rabbitmq_task_queues,
            "rabbitmq_users": rabbitmq_users,
        }
