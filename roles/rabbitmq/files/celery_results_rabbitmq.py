#!/usr/bin/python3
"""What role rabbitmq needs on the server's host, and no module does; for root.

check-config FILE    would the server take these settings?
pending              what the running node has otherwise than the files say: one JSON object; changes nothing
queue-types          the types of our queues of tasks, as the running node has them: one JSON object
apply                give the running node what it can take
wait                 until the node answers
close-epmd           with the node stopped, end a port mapper that others can reach
dump FILE            everything that is declared: users, permissions, queues, ...; no message
verify FILE          is this a whole copy?
restore FILE         declare what the copy has; what is there besides stays
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from celery_results_rabbitmq_node import (
    LIVE,
    LIVE_VALUE,
    NODE,
    PRINTED,
    binary,
    decoded,
    epmd_is_open,
    evaluate,
    fail,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ETC: Final = Path(os.environ.get("CELERY_RESULTS_RABBITMQ_ETC", "/etc/rabbitmq"))
LOG: Final = Path("/var/log/rabbitmq/rabbit@localhost.log")
SETTINGS: Final = ETC / "conf.d/90-celery-results.conf"
DEFINITIONS: Final = ETC / "celery-results.json"
RECORD: Final = ETC / "celery-results.applied"
# Read at the start only; the settings are, too, but for those in LIVE.
AT_START: Final = {
    "environment": ETC / "rabbitmq-env.conf",
    "plugins": ETC / "enabled_plugins",
    "unit": Path("/etc/systemd/system/rabbitmq-server.service.d/celery-results.conf"),
}
TLS_FILES: Final = ("cacertfile", "certfile", "keyfile")
WAIT_SECONDS: Final = 120
ACTING: Final = '<<"celery-results">>'
# Reply queues are made by their clients, and gone with them.
REPLY_QUEUE: Final = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")


def main(arguments: list[str]) -> int:
    """Run one command."""
    commands: dict[str, Callable[..., None]] = {
        "check-config": check_config,
        "pending": pending,
        "queue-types": queue_types,
        "apply": apply,
        "wait": wait,
        "close-epmd": close_epmd,
        "dump": dump,
        "verify": verify,
        "restore": restore,
    }
    if not arguments or arguments[0] not in commands:
        fail(f"expected one of {', '.join(commands)}", code=2)
    commands[arguments[0]](*arguments[1:])
    return 0


# --- what should be and what is ---


def settings_of(file: Path = SETTINGS) -> dict[str, str]:
    """Return the settings of a file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def files_read() -> dict[str, Path]:
    """Return the files that a node reads at its start only, and those of TLS."""
    settings = settings_of()
    files = AT_START | {f"tls {name}": Path(settings[f"ssl_options.{name}"]) for name in TLS_FILES}
    return {name: file for name, file in files.items() if file.exists()}


def digest(file: Path) -> str:
    """Return a digest of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def record() -> dict[str, Any]:
    """Return what a node was given last: {"identity", "settings", "files", "users"}; empty at first."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json.loads(RECORD.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def given(now: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the settings and the digests of files that the running node was given."""
    last = record()
    if last.get("identity") == now["identity"]:
        return last["settings"], last["files"]

    def was_there(file: Path) -> bool:
        return file.stat().st_mtime * 1000 < float(now["started"])

    # Started since, by whomever: it read the files as they were then.
    files = {name: digest(file) for name, file in files_read().items() if was_there(file)}
    return settings_of() if was_there(SETTINGS) else {}, files


def differences(now: dict[str, Any]) -> dict[str, Any]:
    """Compare a running node with the files; the keys are those that `pending` prints."""
    settings, files = settings_of(), {name: digest(file) for name, file in files_read().items()}
    had_settings, had_files = given(now)
    changed = {
        name for name in settings.keys() | had_settings.keys() if settings.get(name) != had_settings.get(name)
    }
    restart = sorted(changed - LIVE.keys()) if had_settings else ["settings"]
    restart += [name for name in AT_START if files.get(name) != had_files.get(name)]
    if epmd_is_open():
        restart.append("epmd")
    served = served_certificate(settings)
    tls_changed = any(files[name] != had_files.get(name) for name in files if name.startswith("tls "))
    return {
        "running": True,
        "restart": restart,
        "settings": sorted(name for name, same in now["live"].items() if not same),
        "tls": tls_changed or served not in {None, certificate(settings)},
        "definitions": [*missing(now), *stale(now)],
        "features": now["features"],
        "alarms": now["alarms"],
        "listening": unexpected(now, settings),
        "expired": served is not None and is_expired(served),
        "recorded": record().get("users") == sorted(user["name"] for user in wanted()["users"]),
    }


def wanted() -> dict[str, Any]:
    """Return our definitions."""
    found: dict[str, Any] = json.loads(DEFINITIONS.read_text(encoding="utf-8"))
    return found


def ask() -> dict[str, Any] | None:
    """Return what the node is now, as far as we care; None where none answers."""
    return state(settings_of(), [queue["name"] for queue in wanted().get("queues", [])])


def missing(now: dict[str, Any]) -> list[str]:
    """Name what our definitions say and the node has otherwise; names only, no hash."""
    found = []
    keys_of = dict.fromkeys(("policies", "exchanges", "queues"), ("name", "vhost")) | {
        "permissions": ("user", "vhost"),
        "bindings": ("source", "vhost", "destination", "routing_key"),
    }
    for kind, entries in wanted().items():
        keys = keys_of.get(kind, ("name",))
        there = {tuple(entry[key] for key in keys): entry for entry in now["definitions"].get(kind, [])}
        for entry in entries:
            name = tuple(entry[key] for key in keys)
            if not is_within(entry, there.get(name, {})):
                found.append(f"{kind} {' '.join(name)}")
    return found


def is_within(asked: object, live: object) -> bool:
    """Compare; a live object may have more keys than were asked for."""
    if isinstance(asked, dict) and isinstance(live, dict):
        return all(key in live and is_within(value, live[key]) for key, value in asked.items())
    return asked == live


def stale(now: dict[str, Any]) -> dict[str, str]:
    """Return what must go, with the expression that removes it: former logins of ours, rights besides."""
    ours = {user["name"] for user in wanted()["users"]}
    gone = ({"guest"} | set(record().get("users", []))) - ours
    live = now["definitions"]
    removals = {
        f"users {name} (too many)": f"rabbit_auth_backend_internal:delete_user({binary(name)}, {ACTING})"
        for name in (user["name"] for user in live["users"])
        if name in gone
    }
    places = {(entry["user"], entry["vhost"]) for entry in wanted()["permissions"]}
    for kind in ("permissions", "topic_permissions"):
        for user, vhost in sorted({(entry["user"], entry["vhost"]) for entry in live[kind]}):
            if user in ours and (kind == "topic_permissions" or (user, vhost) not in places):
                removals[f"{kind} {user} {vhost} (too many)"] = (
                    f"rabbit_auth_backend_internal:clear_{kind}({binary(user)}, {binary(vhost)}, {ACTING})"
                )
    return removals


def unexpected(now: dict[str, Any], settings: dict[str, str]) -> list[str]:
    """Name the sockets that others reach and that are not the TLS listener's, and those that are missing."""
    ours = {value for name, value in settings.items() if name.startswith("listeners.ssl.")}
    found = {f"{address}:{port}" for address, port in now["listening"]}
    here = ("127.", "::1:", "::ffff:127.")
    return sorted(place for place in found - ours if not place.startswith(here)) + [
        f"{place} (missing)" for place in sorted(ours - found)
    ]


# --- certificates ---


def served_certificate(settings: dict[str, str]) -> bytes | None:
    """Return the certificate that the listener shows, DER; None where none answers."""
    places = [value.rpartition(":") for name, value in settings.items() if name.startswith("listeners.ssl.")]
    address, _, port = next((place for place in places if place[0].startswith("127.")), places[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Looked at, not trusted: an expired one must be seen, too.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    where = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - asked, not bound
    try:
        with (
            socket.create_connection((where, int(port)), timeout=10) as plain,
            context.wrap_socket(plain) as encrypted,
        ):
            return encrypted.getpeercert(binary_form=True)
    except OSError:
        return None


def certificate(settings: dict[str, str]) -> bytes:
    """Return the certificate of the file, DER; the first, of a chain."""
    text = Path(settings["ssl_options.certfile"]).read_text(encoding="ascii")
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN") :].partition(end)[0] + end)


def is_expired(der: bytes) -> bool:
    """Tell whether a certificate is over."""
    command = ["/usr/bin/openssl", "x509", "-inform", "DER", "-noout", "-checkend", "0"]
    return subprocess.run(command, input=der, capture_output=True, check=False).returncode != 0  # noqa: S603


# --- commands ---


def check_config(file: str) -> None:
    """Refuse a file that the node would not start with: the same schemas, read by the same library."""
    libraries = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/plugins"))
    if not libraries:
        fail("RabbitMQ is not installed in /usr/lib/rabbitmq/lib")
    program = (
        'Schemas = filelib:wildcard(os:getenv("ERL_LIBS") ++ "/*/priv/schema/*.schema"), '
        'Settings = cuttlefish_conf:file(os:getenv("CHECKED")), '
        "case cuttlefish_generator:map(cuttlefish_schema:files(Schemas), Settings) of "
        "{error, _, {errorlist, Errors}} -> "
        '[io:format("~ts~n", [cuttlefish_error:xlate(Error)]) || {error, Error} <- Errors], halt(1); '
        "_ -> halt(0) end."
    )
    environment = {
        "ERL_LIBS": str(libraries[-1]),
        "CHECKED": file,
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
    }
    checked = subprocess.run(  # noqa: S603
        ["/usr/bin/erl", "-noinput", "-eval", program],
        env=environment | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    if checked.returncode:
        said = (checked.stdout + checked.stderr)[-2000:]
        fail(f"RabbitMQ refuses a setting; unless the role is wrong, it comes from rabbitmq_config:\n{said}")


def pending() -> None:
    """Print what is otherwise: {"running", "restart", "settings", "tls", "definitions", "features", ...}."""
    now = ask()
    lists = ("restart", "settings", "definitions", "features", "alarms", "listening")
    answer: dict[str, Any] = {name: [] for name in lists}
    answer |= {"running": False, "tls": False, "expired": False, "recorded": True}
    if now is None and epmd_is_open():
        answer["restart"] = ["epmd"]
    sys.stdout.write(f"{json.dumps(answer if now is None else answer | differences(now))}\n")


def queue_types() -> None:
    """Print {"vhost name": "quorum", ...}; {} where no node answers."""
    now = ask()
    queues = [] if now is None else now["definitions"]["queues"]
    types = {f"{queue['vhost']} {queue['name']}": queue["type"] for queue in queues}
    sys.stdout.write(f"{json.dumps(types)}\n")


def apply() -> None:
    """Give the running node what it can take; raises SystemExit where it needs a restart first."""
    settings = settings_of()
    now = ask()
    if now is None:
        fail(f"{NODE} does not answer")
    have = differences(now)
    if have["restart"]:
        fail(f"the node needs a restart first: {', '.join(have['restart'])}")
    for name in have["settings"]:
        if not LIVE_VALUE.fullmatch(settings[name]):
            fail(f"{name} = {settings[name]}: a number or a size was expected")
        evaluate(LIVE[name].format(value=settings[name]))
    if have["tls"]:
        evaluate("ssl:clear_pem_cache()")
    if missing(now):
        declare(DEFINITIONS)
    for expression in stale(now).values():
        evaluate(expression)
    for feature in have["features"]:
        evaluate(f"rabbit_feature_flags:enable('{feature}')")
    # 3.10 finds a quorum queue after kill -9 only if this was written, which it does seconds later by itself.
    evaluate("[dets:sync(Table) || Table <- dets:all()]")
    files = {name: digest(file) for name, file in files_read().items()}
    users = sorted(user["name"] for user in wanted()["users"])
    write_record({"identity": now["identity"], "settings": settings, "files": files, "users": users})


def declare(file: Path) -> None:
    """Have the node declare what a file of definitions says; the node reads the file itself."""
    answer = evaluate(
        f"(fun() -> {{ok, Body}} = file:read_file({binary(str(file))}), "
        "rabbit_definitions:import_raw(Body) end)()"
    )
    if answer != "ok":
        fail(f"the node does not take {file}: {answer[:2000]}")


def write_record(content: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    if RECORD.exists() and RECORD.read_text(encoding="utf-8") == text:
        return
    new = RECORD.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(RECORD)


def wait() -> None:
    """Wait until the node answers; else show the end of its log."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if state({}) is not None:
            return
        time.sleep(0.3)
    log = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:]) if LOG.exists() else "it has none"
    fail(f"{NODE} does not answer within {WAIT_SECONDS} s; its log ends:\n{log}")


def close_epmd() -> None:
    """End a port mapper that others can reach; the next one listens on loopback only."""
    if not epmd_is_open():
        return
    by_systemd = Path("/run/systemd/system").is_dir()
    if by_systemd:
        subprocess.run(["/usr/bin/systemctl", "stop", "epmd.socket", "epmd.service"], check=True)
    if epmd_is_open():
        # One that an Erlang program has started by itself; it refuses while it knows a running node.
        subprocess.run(["/usr/bin/epmd", "-kill"], check=False, stdout=subprocess.DEVNULL)
    if epmd_is_open():
        fail(
            "epmd listens on every address and serves another Erlang program: stop that, then run this again"
        )
    if by_systemd:
        subprocess.run(["/usr/bin/systemctl", "start", "epmd.socket"], check=True)


def dump(file: str) -> None:
    """Write everything that is declared, but for the reply queues of clients."""
    found = decoded(evaluate(PRINTED.format(term="rabbit_definitions:all_definitions()")))
    found["queues"] = [queue for queue in found.get("queues", []) if not REPLY_QUEUE.fullmatch(queue["name"])]
    found["bindings"] = [
        binding for binding in found.get("bindings", []) if not REPLY_QUEUE.fullmatch(binding["destination"])
    ]
    Path(file).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def verify(file: str) -> None:
    """Refuse what is no whole copy of the definitions of a node with our users."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        names = {user["name"] for user in found["users"]}
        whole = all(
            isinstance(found[kind], list) for kind in ("vhosts", "permissions", "queues", "exchanges")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{file} is damaged or holds no definitions: {error!r}")
    if not whole or not names & {user["name"] for user in wanted()["users"]}:
        fail(f"{file} holds definitions, but none of the users of {DEFINITIONS}")


def restore(file: str) -> None:
    """Declare what a copy has, then what is wanted today: a password that changed since stays changed."""
    verify(file)
    # Where the node's user can read it: a backup is root's alone.
    copy = DEFINITIONS.with_suffix(".restore")
    try:
        copy.touch(mode=0o640)
        os.chown(copy, 0, DEFINITIONS.stat().st_gid)
        copy.write_bytes(Path(file).read_bytes())
        declare(copy)
    finally:
        copy.unlink(missing_ok=True)
    declare(DEFINITIONS)
    apply()
    found = json.loads(Path(file).read_text(encoding="utf-8"))
    counts = ", ".join(
        f"{len(found[kind])} {kind}" for kind in ("vhosts", "users", "policies", "exchanges", "queues")
    )
    sys.stdout.write(
        f"Declared from the backup: {counts}. Messages are not in it; what was there besides, stays.\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
