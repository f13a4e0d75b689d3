"""The database as a program of the workers and as everybody else meet it."""

import json

import pytest
from scenario_support import CeleryHost, Site
from testinfra.host import Host

PROJECT = "/srv/proj"
DIRECTORY = "/var/lib/celery/results"
DATABASE = f"{DIRECTORY}/results.sqlite3"
TOOL = "/usr/local/sbin/celery-results-sqlite"
LOOK = (
    "import sqlite3; c = sqlite3.connect('file:{file}?mode=rw', uri=True); "
    "c.execute('SELECT count(*) FROM celery_taskmeta'); c.execute('BEGIN IMMEDIATE'); print('open')"
)


def look(user: str) -> str:
    return f'runuser -u {user} -- python3 -c "{LOOK.format(file=DATABASE)}"'


def test_a_task_runs_in_the_hardened_worker(worker: CeleryHost) -> None:
    code = "from proj.celery import add; print(add.delay(2, 3).get(timeout=20))"
    assert worker.python(code, more_path=PROJECT) == "5"
    assert worker.python(code, env_file="client.env", more_path=PROJECT) == "5"
    shown = worker.host.check_output("systemctl show celery-worker -p ProtectSystem -p CapabilityBoundingSet")
    assert "ProtectSystem=strict" in shown
    assert "CapabilityBoundingSet=\n" in shown + "\n"


def test_every_composition_comes_back_and_what_has_no_sense_here_is_not_called_proven(
    worker: CeleryHost,
) -> None:
    code, report = worker.cli("smoke")
    assert code == 0, report
    statuses = {check["name"]: check["status"] for check in report["checks"]}
    for name in (
        "value",
        "group",
        "group_save_restore",
        "chord",
        "chain",
        "forget",
        "large_result",
        "foreign_key",
    ):
        assert statuses[name] == "passed", name
    for name in ("plain_text", "wrong_password", "no_password", "untrusted_ca", "wrong_name", "client_write"):
        assert statuses[name] == "not_run", name


@pytest.mark.parametrize(
    ("path", "mode"),
    [(DIRECTORY, 0o700), (DATABASE, 0o600), (f"{DATABASE}-wal", 0o600), (f"{DATABASE}-shm", 0o600)],
)
def test_files_are_the_workers_alone(server: Host, worker: CeleryHost, path: str, mode: int) -> None:
    # While a connection is open, SQLite's other files are there too.
    command = (
        "import os, sqlite3, stat; c = sqlite3.connect("
        f"'{DATABASE}'); c.execute('BEGIN IMMEDIATE'); s = os.stat('{path}'); print(oct(s.st_mode & 0o7777), s.st_uid)"
    )
    user = server.check_output("id -u celery")
    assert worker.python(command) == f"{oct(mode)} {user}"


@pytest.mark.parametrize("user", ["nobody", "www-data", "redis"])
def test_other_users_are_shut_out(server: Host, user: str) -> None:
    assert server.run(look("celery")).stdout.strip() == "open"
    attempt = server.run(look(user))
    assert attempt.rc != 0
    assert "unable to open database file" in attempt.stderr


def test_a_database_opened_to_others_is_found_by_smoke_and_doctor(server: Host, worker: CeleryHost) -> None:
    stolen = f"runuser -u nobody -- head -c 15 {DATABASE}"
    assert server.run(stolen).rc != 0
    server.check_output(f"chmod 0755 /var/lib/celery {DIRECTORY} && chmod 0644 {DATABASE}")
    try:
        assert server.check_output(stolen) == "SQLite format 3"
        code, report = worker.cli("smoke --only foreign_key")
        assert code == 1, report
        code, report = worker.cli("doctor")
        assert code == 1
        errors = {finding["code"] for finding in report["findings"] if finding["severity"] == "error"}
        assert errors == {"CRB622"}
    finally:
        server.check_output(f"chmod 0750 /var/lib/celery && chmod 0700 {DIRECTORY} && chmod 0600 {DATABASE}")
    # As root, smoke does not judge by the modes: it becomes nobody and tries.
    tried = server.run("/opt/celery/venv/bin/celery-results smoke --only foreign_key --json")
    assert tried.rc == 0, tried.stdout
    assert "nobody tried" in json.loads(tried.stdout)["checks"][0]["note"]


def test_the_deployed_connection_is_durable_and_patient(worker: CeleryHost) -> None:
    # The connection that stores results, whichever class makes it.
    code = """
pool = getattr(app.backend, "_pool", None)
run = pool.run if pool else lambda work: work(app.backend.ResultSession().connection().connection)
for name in ("journal_mode", "synchronous", "busy_timeout"):
    print(run(lambda session: list(session.execute(f"PRAGMA {name}"))[0][0]))
"""
    assert worker.python(code).split() == ["wal", "2", "30000"]


def test_check_mode_on_the_clean_host_changed_nothing(site: Site) -> None:
    site.assert_clean_check_ended_well()


def test_check_mode_on_the_deployed_host_finds_nothing_to_do(site: Site) -> None:
    site.assert_nothing_to_do("--check", "--diff", broker="redis")


def test_what_makes_no_sense_is_refused_before_anything_is_touched(site: Site, server: Host) -> None:
    before = server.check_output(f"stat -c '%Y %i' {DIRECTORY} {DATABASE} /etc/celery")
    # Any disk passes for a network file system here: it is asked for, and named.
    run = site.run(
        broker="redis",
        sqlite_busy_timeout_seconds=0,
        sqlite_owner="root",
        sqlite_directory="/srv/results",
        __sqlite_remote_file_systems="^[a-z0-9]+$",
    )
    assert run.returncode != 0
    for text in (
        "sqlite_busy_timeout_seconds is 0",
        "sqlite_owner is root",
        "sqlite_directory is /srv/results",
        "is on a network file system (",
        "-e backend=postgresql",
    ):
        assert text in " ".join(run.stdout.split()), text
    assert server.check_output(f"stat -c '%Y %i' {DIRECTORY} {DATABASE} /etc/celery") == before
