"""files/celeryconfig/postgresql.py: what it makes of a server, read as SQLAlchemy and libpq read it."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from celery.app.defaults import SETTING_KEYS
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.engine import make_url

SOURCE = Path(__file__).parents[2] / "files" / "celeryconfig" / "postgresql.py"
NASTY = """p@ss:w/or?d#%25&;$`"'\\ é+"""
SERVER = {
    "hosts": ["results.example.com:7432"],
    "implementation": "bundled",
    "database": "celery_results",
    "username": "celery_worker",
    "password": NASTY,
    "tls_enabled": True,
    "tls_ca_file": "/etc/celery/tls/ca.crt",
    "tls_cert_file": "",
    "tls_key_file": "",
    "options": {},
}


@pytest.fixture
def settings():
    specification = importlib.util.spec_from_file_location("celeryconfig_postgresql", SOURCE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    def make(**changes: Any) -> dict[str, Any]:
        return dict(module.result_settings(SimpleNamespace(**(SERVER | changes))))

    return make


def query_of(made: dict[str, Any]) -> dict[str, str]:
    query = make_url(made["result_backend"].partition("+")[2]).query
    return {name: str(value) for name, value in query.items()}


def test_every_name_is_one_of_celerys(settings):
    assert set(settings()) <= SETTING_KEYS


@pytest.mark.parametrize(
    ("implementation", "start", "driver"),
    [
        ("bundled", "celery_results.backends.database:DatabaseBackend+", "postgresql+psycopg"),
        ("stock", "db+", "postgresql+psycopg2"),
    ],
)
def test_url_is_read_back_whole(settings, implementation, start, driver):
    backend = settings(implementation=implementation)["result_backend"]
    assert backend.startswith(start)
    url = make_url(backend.removeprefix(start))
    assert url.drivername == driver
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "celery_worker",
        NASTY,
        "results.example.com",
        7432,
        "celery_results",
    )
    # libpq knows every parameter.
    conninfo_to_dict(make_conninfo(**{name: str(value) for name, value in url.query.items()}))


def test_an_ipv6_address_is_a_host(settings):
    backend = settings(hosts=["[2001:db8::1]:5432"])["result_backend"]
    assert make_url(backend.partition("+")[2]).host == "2001:db8::1"


def test_chain_and_name_are_verified(settings):
    query = query_of(settings())
    assert query["sslmode"] == "verify-full"
    assert query["sslrootcert"] == "/etc/celery/tls/ca.crt"
    assert "sslcert" not in query


def test_mutual_tls_shows_a_certificate(settings):
    made = settings(tls_cert_file="/etc/celery/tls/client.crt", tls_key_file="/etc/celery/tls/client.key")
    query = query_of(made)
    assert (query["sslcert"], query["sslkey"]) == ("/etc/celery/tls/client.crt", "/etc/celery/tls/client.key")


def test_a_silent_server_is_given_up_in_seconds(settings):
    query = query_of(settings())
    assert int(query["connect_timeout"]) <= 10
    idle, interval, count = (
        int(query[name]) for name in ("keepalives_idle", "keepalives_interval", "keepalives_count")
    )
    assert idle + interval * count <= 90
    assert int(query["tcp_user_timeout"]) <= 60_000


def test_the_session_is_in_utc_and_on_a_primary(settings):
    query = query_of(settings())
    assert query["options"] == "-c timezone=UTC"
    assert query["target_session_attrs"] == "primary"


def test_engine_options_keep_what_celery_has_by_default(settings):
    made = settings(implementation="stock")
    assert made["database_engine_options"] == {"pool_pre_ping": True, "pool_recycle": 3600}
    assert made["database_create_tables_at_setup"] is False


def test_no_setting_shows_the_password_as_it_is(settings):
    assert NASTY not in str(settings())
    assert psycopg.__version__.startswith("3.")
