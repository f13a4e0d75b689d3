"""The settings for SQLite as the real Celery and SQLite take them, and what doctor says of others."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery
from files.celeryconfig import sqlite as settings

from celery_results.doctor.servers import for_subject
from celery_results.doctor.servers import sqlite as doctor
from celery_results.doctor.subject import Subject

MOUNTS = r"""
22 1 8:1 / / rw - ext4 /dev/vda1 rw
30 22 0:40 / /srv/my\040results rw shared:1 - nfs4 server:/results rw
31 30 8:2 / /srv/my\040results/local rw - xfs /dev/vdb rw
32 22 0:41 / /var rw master:2 - tmpfs tmpfs rw
33 32 8:3 / /var rw - btrfs /dev/vdc rw
"""


def server(implementation="bundled", **options):
    return SimpleNamespace(
        implementation=implementation, database="/var/lib/celery/results/results.sqlite3", options=options
    )


def subject(url="sqlite:////nowhere/results.sqlite3", backend="db", **raw):
    return Subject(raw={"result_backend": f"{backend}+{url}", **raw})


@pytest.mark.parametrize(
    ("implementation", "scheme"),
    [("bundled", "celery_results.backends.database:DatabaseBackend"), ("stock", "db")],
)
def test_the_path_is_absolute_and_no_process_makes_tables(implementation, scheme):
    made = settings.result_settings(server(implementation))
    assert made["result_backend"] == f"{scheme}+sqlite:////var/lib/celery/results/results.sqlite3"
    assert made["database_create_tables_at_setup"] is False


def ask(backend, pragma):
    """Ask a connection that the backend itself has made."""
    statement = f"PRAGMA {pragma}"
    if pool := getattr(backend, "_pool", None):
        return pool.run(lambda session: session.execute(statement))[0][0]
    with backend.ResultSession() as session:
        return session.connection().connection.execute(statement).fetchone()[0]


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
@pytest.mark.parametrize(("durability", "number"), [({}, 2), ({"synchronous": "normal"}, 1)])
def test_every_connection_has_the_durability_and_the_patience_that_were_asked_for(
    tmp_path, implementation, durability, number
):
    described = server(implementation, busy_timeout_seconds=7, **durability)
    described.database = str(tmp_path / "results.sqlite3")
    Path(described.database).touch()
    app = Celery(set_as_current=False)
    app.conf.update(settings.result_settings(described), result_expires=3600)
    assert ask(app.backend, "synchronous") == number
    assert ask(app.backend, "busy_timeout") == 7000


def test_an_unknown_durability_is_an_error():
    with pytest.raises(KeyError):
        settings.result_settings(server(synchronous="off"))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/results", "ext4"),
        ("/srv/my results/r.sqlite3", "nfs4"),
        ("/srv/my results/local/r.sqlite3", "xfs"),
        ("/srv/my results elsewhere", "ext4"),
        ("/var/lib", "btrfs"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_and_latest_mount(path, kind):
    assert doctor.file_system(Path(path), MOUNTS.strip()) == kind


@pytest.mark.parametrize("backend", ["db", "database", "celery_results.backends.database:DatabaseBackend"])
def test_doctor_knows_sqlite_by_its_url(backend):
    assert for_subject(subject(backend=backend)) is doctor
    assert for_subject(subject("oracle://h/x", backend=backend)) is not doctor


@pytest.mark.parametrize("url", ["sqlite:///results.sqlite3", "sqlite://", "sqlite:///:memory:"])
def test_a_database_of_each_process_is_an_error(url):
    assert "CRB628" in {finding.code for finding in doctor.check_settings(subject(url))}
    assert list(doctor.check_server(subject(url))) == []
    assert "CRB628" not in {finding.code for finding in doctor.check_settings(subject())}
