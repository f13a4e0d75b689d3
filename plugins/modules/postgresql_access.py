"""Keep a database, its owner, its logins and their rights exactly as listed; only differences are written."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import pwd
import secrets
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

try:
    import psycopg2  # type: ignore[import-untyped]
    import psycopg2.extras  # type: ignore[import-untyped]
    from psycopg2 import sql
except ImportError:
    psycopg2 = None

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENTATION = """
module: postgresql_access
short_description: keep a database, its logins and their rights exactly as listed
description:
  - Reads the catalogue, compares, and writes differences only, all of them in one transaction (a database
    is created before it).
  - A password is compared with the SCRAM verifier that the server keeps; a new one is sent as a verifier,
    so that no log and
    no statistics can hold it.
  - Rights that the listed logins or PUBLIC have beyond the list, on the listed objects, are revoked; other
    roles are left alone.
  - Connects by the unix socket as the user postgres.
options:
  port: {description: the server's port, type: int, default: 5432}
  database: {description: the database, type: str, required: true}
  owner: {description: who owns it and may not log in, type: str, required: true}
  logins:
    description: the logins, each with name, connection_limit, settings and member_of
    type: list
    elements: dict
    required: true
  passwords: {description: the password of each login, type: dict, required: true}
  grants:
    description: each has kind, name, login, privileges and perhaps columns; an empty list leaves all as it is
    type: list
    elements: dict
    default: []
  owned_tables:
    description: tables and sequences that the owner takes over if they are there
    type: list
    elements: str
    default: []
author: celery-results
"""
EXAMPLES = """
- name: Keep the database and its logins
  postgresql_access:
    database: celery_results
    owner: celery_results_owner
    logins: [{name: celery_worker, connection_limit: 100, settings: {timezone: UTC}, member_of: []}]
    passwords: {celery_worker: "{{ lookup('bundle_secret', 'postgresql_worker_password') }}"}
"""
RETURN = """
changes: {description: what was changed, in words, type: list, returned: always}
"""

SOCKET_DIRECTORY = "/var/run/postgresql"
ITERATIONS = 4096
WEAK = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")
ACTUAL_RIGHTS = """
SELECT 'database' AS kind, d.datname AS name, '' AS part, a.grantee, a.privilege_type AS privilege
  FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
 WHERE d.datname = current_database()
UNION ALL
SELECT 'schema', n.nspname, '', a.grantee, a.privilege_type
  FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
 WHERE n.nspname = 'public'
UNION ALL
SELECT CASE c.relkind WHEN 'S' THEN 'sequence' ELSE 'table' END, c.relname, '', a.grantee, a.privilege_type
  FROM pg_class c,
       aclexplode(coalesce(c.relacl,
         acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))) a
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'S')
UNION ALL
SELECT 'table', c.relname, t.attname, a.grantee, a.privilege_type
  FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
 WHERE c.relnamespace = 'public'::regnamespace AND NOT t.attisdropped
"""
# kind, name, column or nothing, grantee, privilege
Right = tuple[str, str, str, str, str]


def verifies(verifier: str | None, password: str) -> bool:
    """Say whether a SCRAM-SHA-256 verifier, as pg_authid has it, belongs to this password (RFC 5803)."""
    try:
        kind, factors, keys = (verifier or "").split("$")
        iterations, salt = factors.split(":")
        stored = base64.b64decode(keys.split(":")[0])
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    except ValueError:
        return False
    client = hmac.digest(salted, b"Client Key", "sha256")
    return kind == "SCRAM-SHA-256" and hmac.compare_digest(hashlib.sha256(client).digest(), stored)


def verifier_of(password: str) -> str:
    """Make a SCRAM-SHA-256 verifier; the password is printable ASCII, which SASLprep leaves as it is."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored_text, server_text = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt_text}${stored_text}:{server_text}"


class Access:
    """The catalogue on one side, the list on the other."""

    def __init__(self, module: AnsibleModule) -> None:
        """Connect to nothing yet."""
        self.module, self.options = module, module.params
        self.changes: list[str] = []
        self.connection: Any = None

    @contextlib.contextmanager
    def session(self, database: str, *, autocommit: bool = False) -> Iterator[None]:
        """Connect to a database; commit at the end, unless in check mode."""
        user = pwd.getpwnam("postgres")
        os.setegid(user.pw_gid)
        os.seteuid(user.pw_uid)
        try:
            self.connection = psycopg2.connect(
                host=SOCKET_DIRECTORY,
                port=self.options["port"],
                dbname=database,
                user="postgres",
                connect_timeout=10,
                # Also where somebody has made the database read-only.
                options="-c default_transaction_read_only=off",
                application_name="celery-results role postgresql",
            )
        finally:
            os.seteuid(0)
            os.setegid(0)
        self.connection.autocommit = autocommit
        try:
            # No statement that carries a verifier shall be in the server's log.
            self.query("SET log_statement = 'none'")
            self.query("SET log_min_duration_statement = -1")
            yield
            if not autocommit:
                self.connection.commit()
        finally:
            self.connection.close()

    def query(self, statement: Any, *arguments: object) -> list[dict[str, Any]]:  # noqa: ANN401
        """Run a query that only reads."""
        with self.connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            cursor.execute(statement, arguments or None)
            return [dict(row) for row in cursor.fetchall()] if cursor.description else []

    def change(self, what: str, statement: Any, *arguments: object) -> None:  # noqa: ANN401
        """Note a change, and make it unless in check mode."""
        self.changes.append(what)
        if not self.module.check_mode:
            self.query(statement, *arguments)

    def keep_roles(self) -> None:
        """Keep owner and logins."""
        owner = {
            "name": self.options["owner"],
            "connection_limit": -1,
            "settings": {},
            "member_of": [],
        }
        for wanted in (owner, *self.options["logins"]):
            self._keep_role(wanted, may_log_in=wanted is not owner)

    def _keep_role(self, wanted: dict[str, Any], *, may_log_in: bool) -> None:
        name = wanted["name"]
        role = sql.Identifier(name)
        rows = self.query(
            "SELECT a.*, r.rolconfig FROM pg_authid a JOIN pg_roles r ON r.oid = a.oid WHERE a.rolname = %s",
            name,
        )
        if not rows:
            self.change(f"role {name}", sql.SQL("CREATE ROLE {}").format(role))
        found = rows[0] if rows else {}
        limit = int(wanted["connection_limit"])
        if (
            any(found.get(flag, False) for flag in WEAK)
            or found.get("rolcanlogin") is not may_log_in
            or found.get("rolconnlimit") != limit
            or found.get("rolvaliduntil") is not None
        ):
            text = "ALTER ROLE {} {} NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS"
            text += " CONNECTION LIMIT {}"
            text += " VALID UNTIL 'infinity'" if found.get("rolvaliduntil") is not None else ""
            login = sql.SQL("LOGIN" if may_log_in else "NOLOGIN")
            self.change(f"attributes of {name}", sql.SQL(text).format(role, login, sql.Literal(limit)))
        if may_log_in:
            password = self.options["passwords"][name]
            if not verifies(found.get("rolpassword"), password):
                new = sql.Literal(verifier_of(password))
                self.change(f"password of {name}", sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, new))
        elif found.get("rolpassword"):
            self.change(f"no password for {name}", sql.SQL("ALTER ROLE {} PASSWORD NULL").format(role))
        self._keep_settings(name, wanted["settings"], found.get("rolconfig") or [])
        self._keep_memberships(name, wanted["member_of"])

    def _keep_settings(self, name: str, wanted: dict[str, Any], found: list[str]) -> None:
        role = sql.Identifier(name)
        present = {key.lower(): value for key, value in (item.split("=", 1) for item in found)}
        for key in sorted(set(present) - {key.lower() for key in wanted}):
            self.change(
                f"{key} of {name} unset",
                sql.SQL("ALTER ROLE {} RESET {}").format(role, sql.Identifier(key)),
            )
        for key, value in wanted.items():
            if present.get(key.lower()) != str(value):
                self.change(
                    f"{key} of {name}",
                    sql.SQL("ALTER ROLE {} SET {} TO {}").format(
                        role, sql.Identifier(key), sql.Literal(str(value))
                    ),
                )
        # What is set for one database wins over what is set for the role.
        for row in self.query(
            "SELECT d.datname FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
            " JOIN pg_roles r ON r.oid = s.setrole WHERE r.rolname = %s",
            name,
        ):
            database = sql.Identifier(row["datname"])
            self.change(
                f"settings of {name} in {row['datname']} unset",
                sql.SQL("ALTER ROLE {} IN DATABASE {} RESET ALL").format(role, database),
            )

    def _keep_memberships(self, name: str, wanted: list[str]) -> None:
        rows = self.query(
            "SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid"
            " JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = %s",
            name,
        )
        found = {row["rolname"] for row in rows}
        for group in sorted(found - set(wanted)):
            text = sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(group), sql.Identifier(name))
            self.change(f"{name} leaves {group}", text)
        for group in sorted(set(wanted) - found):
            text = sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(name))
            self.change(f"{name} joins {group}", text)

    def database(self) -> dict[str, Any]:
        """Return encoding, owner and settings of the database; nothing where it is not there."""
        rows = self.query(
            "SELECT pg_encoding_to_char(encoding) AS encoding, pg_get_userbyid(datdba) AS owner, datallowconn"
            " FROM pg_database WHERE datname = %s",
            self.options["database"],
        )
        return rows[0] if rows else {}

    def create_database(self) -> None:
        """Create it in UTF-8 with the collation of code points, whatever the cluster has."""
        name, owner = sql.Identifier(self.options["database"]), sql.Identifier(self.options["owner"])
        text = "CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8'"
        text += " LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"
        self.change(f"database {self.options['database']}", sql.SQL(text).format(name, owner))

    def adopt(self) -> None:
        """Give the owner what others made before: Celery's tables, and the database."""
        owner = sql.Identifier(self.options["owner"])
        if self.database()["owner"] != self.options["owner"]:
            name = sql.Identifier(self.options["database"])
            self.change("owner of the database", sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, owner))
        for row in self.query(
            "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace AND "
            "relname = ANY(%s)"
            " AND relkind IN ('r', 'p', 'S') AND pg_get_userbyid(relowner) <> %s ORDER BY relkind DESC, "
            "relname",
            self.options["owned_tables"],
            self.options["owner"],
        ):
            kind = sql.SQL("SEQUENCE" if row["relkind"] == "S" else "TABLE")
            text = sql.SQL("ALTER {} public.{} OWNER TO {}").format(
                kind, sql.Identifier(row["relname"]), owner
            )
            self.change(f"owner of {row['relname']}", text)

    def keep_rights(self) -> None:
        """Grant what is missing, revoke what is too much."""
        names = {row["oid"]: row["rolname"] for row in self.query("SELECT oid, rolname FROM pg_roles")} | {
            0: "PUBLIC"
        }
        rows = self.query(ACTUAL_RIGHTS)
        actual = {
            (row["kind"], row["name"], row["part"], names.get(row["grantee"], ""), row["privilege"])
            for row in rows
        }
        changes = missing_and_surplus(self.options["grants"], actual)
        for verb, joint, rights in (("GRANT", "TO", changes[0]), ("REVOKE", "FROM", changes[1])):
            for right in rights:
                self.change(" ".join(filter(None, (verb.lower(), *right))), statement_of(verb, joint, right))


def missing_and_surplus(grants: list[dict[str, Any]], actual: set[Right]) -> tuple[list[Right], list[Right]]:
    """Compare; what roles and objects have that are not listed is nobody's business here."""
    wanted: set[Right] = {
        (grant["kind"], grant["name"], column, grant["login"], privilege)
        for grant in grants
        for column in grant.get("columns", [""])
        for privilege in grant["privileges"]
    }
    objects = {(kind, name) for kind, name, *_ in wanted}
    roles = {grant["login"] for grant in grants} | {"PUBLIC"}
    surplus = {right for right in actual - wanted if right[:2] in objects and right[3] in roles}
    return sorted(wanted - actual), sorted(surplus)


def statement_of(verb: str, joint: str, right: Right) -> Any:  # noqa: ANN401 - psycopg2 has no types
    """Write one GRANT or REVOKE."""
    kind, name, column, login, privilege = right
    return sql.SQL("{} {}{} ON {} {}{} {} {}").format(
        sql.SQL(verb),
        sql.SQL(privilege),
        sql.SQL("({})").format(sql.Identifier(column)) if column else sql.SQL(""),
        sql.SQL(kind.upper()),
        sql.SQL("public.") if kind in {"table", "sequence"} else sql.SQL(""),
        sql.Identifier(name),
        sql.SQL(joint),
        sql.SQL("PUBLIC") if login == "PUBLIC" else sql.Identifier(login),
    )


def work(access: Access) -> None:
    """Keep roles, database and rights, in this order."""
    module, database = access.module, access.options["database"]
    with access.session("postgres"):
        access.keep_roles()
        found = access.database()
    if found and found["encoding"] != "UTF8":
        module.fail_json(
            msg=f"The database {database} is {found['encoding']}, results are UTF-8. Rename it "
            f"(ALTER DATABASE {database} RENAME TO {database}_old), run this again, and copy what you need."
        )
    if not found:
        with access.session("postgres", autocommit=True):
            access.create_database()
        if module.check_mode:
            return
    with access.session(database):
        access.adopt()
        if access.options["grants"]:
            access.keep_rights()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "default": 5432},
            "database": {"type": "str", "required": True},
            "owner": {"type": "str", "required": True},
            "logins": {"type": "list", "elements": "dict", "required": True},
            "passwords": {"type": "dict", "required": True, "no_log": True},
            "grants": {"type": "list", "elements": "dict", "default": []},
            "owned_tables": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    if psycopg2 is None:
        module.fail_json(msg="the package python3-psycopg2 is missing")
    access = Access(module)
    try:
        work(access)
    except psycopg2.Error as failure:
        module.fail_json(msg=f"PostgreSQL: {str(failure).strip()}", changes=access.changes)
    module.exit_json(changed=bool(access.changes), changes=access.changes)


if __name__ == "__main__":
    main()
