"""Keep secrets out of whatever is printed: messages, worker logs, reprs of URLs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MASK = "********"
# The user part may be empty (redis://:password@host); the password ends at the last @ before the host.
_URL_PASSWORD = re.compile(r"(?P<head>[a-zA-Z][\w+.-]*://[^\s:/@'\"]*:)[^\s/'\"]+@")
_SECRET_NAME = re.compile(r"_(PASSWORD|SECRET|TOKEN|PASSPHRASE)$")
# Shorter ones would blank out harmless text, and are no secrets.
_SHORTEST_SECRET = 4


class Redactor:
    """Replace known secrets, raw or percent-encoded, and the password of any URL."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Take the secrets as they are; the longest is replaced first."""
        forms = {form for secret in secrets for form in (secret, quote(secret, safe=""))}
        self._forms = sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=len, reverse=True)

    def clean(self, text: str) -> str:
        """Give the text with every secret masked."""
        for form in self._forms:
            text = text.replace(form, MASK)
        return _URL_PASSWORD.sub(rf"\g<head>{MASK}@", text)


def redactor_for(*environments: Mapping[str, str]) -> Redactor:
    """Know the secrets of these environments: by variable name, and as passwords of URLs."""
    secrets: set[str] = set()
    for environ in environments:
        for name, value in environ.items():
            if _SECRET_NAME.search(name):
                secrets.add(value)
            elif name.endswith("_URL"):
                secrets.update(unquote(part) for part in _url_passwords(value))
    return Redactor(secrets)


def _url_passwords(urls: str) -> Iterable[str]:
    for url in urls.split(";"):
        try:
            password = urlsplit(url).password
        except ValueError:
            continue
        if password:
            yield password
