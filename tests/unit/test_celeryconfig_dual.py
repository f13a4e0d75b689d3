"""files/celeryconfig while results move from one store to another, read by the real Celery."""

import pytest
from celery.app.defaults import SETTING_KEYS
from celery.exceptions import ImproperlyConfigured
from tests.unit.celeryconfig_case import NASTY, app_of, broker_of, settings

from celery_results.backends.database import DatabaseBackend
from celery_results.backends.dual import DualBackend
from celery_results.backends.redis import RedisBackend

REDIS = {
    "NAME": "redis",
    "SCHEME": "rediss",
    "HOSTS": "old.example.com:6390",
    "DATABASE": "1",
    "USERNAME": "celery-worker",
    "PASSWORD": NASTY,
    "TLS_ENABLED": "true",
    "TLS_CA_FILE": "/etc/celery/tls/ca.crt",
}
POSTGRESQL = REDIS | {
    "NAME": "postgresql",
    "SCHEME": "postgresql",
    "HOSTS": "new.example.com:5432",
    "DATABASE": "celery",
    "USERNAME": "celery_worker",
}
SQLITE = {
    "NAME": "sqlite",
    "SCHEME": "sqlite",
    "HOSTS": "",
    "DATABASE": "/var/lib/celery-results/r.sqlite3",
    "TLS_ENABLED": "false",
}


def described(role, server):
    return {f"{role}_{name}": value for name, value in server.items()}


@pytest.fixture
def move(load, tmp_path):
    def make(old, new, stage="dual_write", extra=()):
        values = {
            "LOGIN": "worker",
            "RESULT_EXPIRES_SECONDS": "3600",
            **described("RESULT", old),
            **described("TARGET", new),
            "MIGRATION_STAGE": stage,
            "MIGRATION_JOURNAL": str(tmp_path / "journal"),
        }
        return load(values, dict(extra))

    return make


@pytest.mark.parametrize("stage", ["dual_write", "bridge"])
def test_the_source_is_the_primary_until_the_cutover(move, stage):
    backend = app_of(move(REDIS, POSTGRESQL, stage)).backend
    assert isinstance(backend, DualBackend)
    assert isinstance(backend.primary, RedisBackend)
    assert backend.primary.connparams["password"] == NASTY
    assert backend.primary.connparams["host"] == "old.example.com"


@pytest.mark.parametrize("stage", ["cutover", "drain"])
def test_the_target_is_the_primary_from_the_cutover_on(move, stage):
    backend = app_of(move(REDIS, POSTGRESQL, stage)).backend
    assert isinstance(backend.primary, DatabaseBackend)
    assert "old.example.com:6390/1" in backend.as_uri().split(" -> ")[1]


@pytest.mark.parametrize(("old", "new"), [(REDIS, SQLITE), (SQLITE, POSTGRESQL), (POSTGRESQL, REDIS)])
def test_every_public_name_is_a_setting_that_celery_reads(move, old, new):
    module = move(old, new)
    assert set(settings(module)) - SETTING_KEYS == set()
    assert isinstance(app_of(module).backend, DualBackend)


def test_no_password_is_told(move):
    assert NASTY not in app_of(move(REDIS, POSTGRESQL)).backend.as_uri()


def test_broker_and_migration_go_together(move):
    module = move(REDIS, POSTGRESQL, extra=broker_of(described("RESULT", REDIS)))
    assert settings(module)["broker_url"].startswith("rediss://celery-worker:")


def test_a_stage_that_there_is_not_is_refused(move):
    with pytest.raises(ImproperlyConfigured, match="stage to be one of dual_write"):
        app_of(move(REDIS, POSTGRESQL, "cut")).backend  # noqa: B018


def test_a_target_that_is_not_described_is_named(load):
    values = {"LOGIN": "worker", "RESULT_EXPIRES_SECONDS": "3600", **described("RESULT", REDIS)}
    with pytest.raises(ImproperlyConfigured, match="CELERYCONFIG_MIGRATION_JOURNAL is not set"):
        load(values, {"MIGRATION_STAGE": "dual_write"})
