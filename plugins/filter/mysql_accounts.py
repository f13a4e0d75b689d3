"""Accounts of MariaDB and MySQL: what there is, what should be, and the statements between the two."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

COLUMNS = re.compile(r"(?P<privilege>[A-Z ]+?) \((?P<columns>[^)]*)\)")
# (what it is on, privilege, column or "")
Right = tuple[str, str, str]


def mysql_native_password(secret: str) -> str:
    """Return a secret as the server keeps it: the secret itself is in no statement and no binary log."""
    # The server's own format. What it lacks in strength, the 238 bits of a generated secret have.
    inner = hashlib.sha1(secret.encode()).digest()  # noqa: S324
    return "*" + hashlib.sha1(inner).hexdigest().upper()  # noqa: S324


def mysql_hosts(sources: Iterable[str]) -> list[str]:
    """Return addresses and networks as the server writes them in an account; it has no names here."""
    hosts = []
    for source in sources:
        network = ipaddress.ip_network(source, strict=False)
        single = network.num_addresses == 1
        hosts.append(
            str(network.network_address) if single else f"{network.network_address}/{network.netmask}"
        )
    return list(dict.fromkeys(hosts))


def mysql_bad_sources(sources: Iterable[object]) -> list[str]:
    """Return the sources that no account can stand for: names, mistakes and IPv6 networks."""

    def is_good(source: object) -> bool:
        try:
            network = ipaddress.ip_network(str(source), strict=False)
        except ValueError:
            return False
        return not isinstance(network, ipaddress.IPv6Network) or network.num_addresses == 1

    return [str(source) for source in sources if not is_good(source)]


def mysql_account_changes(
    found: Sequence[Sequence[Mapping[str, Any]]], wanted: Mapping[str, Any]
) -> list[str]:
    """Return the statements that make the accounts what they should be; none, if they are.

    `found` has the rows of three queries (roles/mysql/vars/main/accounts.yml): accounts, rights, and an empty
    database test. Accounts of other names are somebody else's, but for those that a server must not have: one
    without a name, and a root that comes by network or by password.
    """
    accounts, rights, leftover = ([list(row.values()) for row in rows] for rows in found)
    logins = {login["name"]: login for login in wanted["logins"]}
    have = {(str(row[0]), str(row[1])): row for row in accounts}
    granted = _granted(rights)
    changes = [
        f"DROP USER {_account(*key)}"
        for key in have
        if key[0] == "" or (key[0] == "root" and key[1] != "localhost")
        or (key[0] in logins and key[1] not in wanted["hosts"])
    ]  # fmt: skip
    root = have.get(("root", "localhost"))
    if root is not None and root[2] != wanted["socket_plugin"]:
        changes.append(f"ALTER USER 'root'@'localhost' IDENTIFIED WITH {wanted['socket_plugin']}")
    for name, login in logins.items():
        for host in wanted["hosts"]:
            changes += _login(have.get((name, host)), login, host, wanted)
            changes += _rights(granted.get((name, host), set()), login, host, wanted["database"])
    return changes + [f"DROP DATABASE {row[0]}" for row in leftover]


def _account(name: str, host: str) -> str:
    return f"'{name}'@'{host}'"


def _login(
    row: Sequence[Any] | None, login: Mapping[str, Any], host: str, wanted: Mapping[str, Any]
) -> list[str]:
    limits = [("MAX_USER_CONNECTIONS", int(login["connections"]))]
    if wanted["has_statement_time"]:
        limits.append(("MAX_STATEMENT_TIME", int(login["statement_seconds"])))
    password, tls = wanted["hashes"][login["name"]], wanted["tls"]
    target = [
        "mysql_native_password",
        password,
        {"SSL": "ANY"}.get(tls, tls),
        *(value for _, value in limits),
    ]
    if row is not None:
        present = [
            str(row[2]),
            str(row[3]).upper(),
            str(row[4]),
            *(int(value) for value in row[5 : 5 + len(limits)]),
        ]
        if present == target:
            return []
    verb = "CREATE" if row is None else "ALTER"
    limited = " ".join(f"{name} {value}" for name, value in limits)
    known_by = f"IDENTIFIED WITH mysql_native_password AS '{password}'"
    return [f"{verb} USER {_account(login['name'], host)} {known_by} REQUIRE {tls} WITH {limited}"]


def _rights(present: set[Right], login: Mapping[str, Any], host: str, database: str) -> list[str]:
    target: set[Right] = set()
    for table, privileges in login["rights"].items():
        place = "*" if table == "*" else f"{database}.{table}"
        for privilege in privileges:
            columns = COLUMNS.fullmatch(privilege)
            if columns:
                names = columns["columns"].split(",")
                target |= {(place, columns["privilege"], name.strip()) for name in names}
            else:
                target.add((place, privilege, ""))
    account = _account(login["name"], host)
    revoke = [f"REVOKE {what} ON {place} FROM {account}" for place, what in _grouped(present - target)]
    return revoke + [f"GRANT {what} ON {place} TO {account}" for place, what in _grouped(target - present)]


def _grouped(rights: set[Right]) -> list[tuple[str, str]]:
    """Return (place, privileges) as a statement has them: all of one place, columns in brackets."""
    statements = []
    for place in sorted({right[0] for right in rights}):
        of_place = {(privilege, column) for where, privilege, column in rights if where == place}
        parts = [privilege for privilege, column in sorted(of_place) if not column]
        for privilege in sorted({privilege for privilege, column in of_place if column}):
            columns = sorted(column for which, column in of_place if which == privilege and column)
            parts.append(f"{privilege} ({', '.join(columns)})")
        on = (
            "*.*"
            if place == "*"
            else ".".join(part if part == "*" else f"`{part}`" for part in place.split("."))
        )
        statements.append((on, ", ".join(parts)))
    return statements


def _granted(rows: Iterable[Sequence[Any]]) -> dict[tuple[str, str], set[Right]]:
    granted: dict[tuple[str, str], set[Right]] = {}
    for grantee, place, column, privilege, grantable in rows:
        name, _, host = str(grantee).partition("'@'")
        rights = granted.setdefault((name.removeprefix("'"), host.removesuffix("'")), set())
        rights.add((str(place), str(privilege), str(column)))
        if grantable == "YES":
            rights.add((str(place), "GRANT OPTION", ""))
    return granted


class FilterModule:
    """The filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {
            "mysql_account_changes": mysql_account_changes,
            "mysql_bad_sources": mysql_bad_sources,
            "mysql_hosts": mysql_hosts,
            "mysql_native_password": mysql_native_password,
        }
