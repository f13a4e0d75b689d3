"""files/celeryconfig/mysql.py, as Celery and PyMySQL read it."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.app.defaults import SETTING_KEYS
from sqlalchemy.engine import make_url

SOURCE = Path(__file__).parents[2] / "files" / "celeryconfig" / "mysql.py"
spec = importlib.util.spec_from_file_location("celeryconfig_mysql", SOURCE)
assert spec
assert spec.loader
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

NASTY = """p@ss:w/or?d#%25&;$`"'\\ é+"""
TLS = {"ssl_ca": "/etc/celery/tls/ca.crt", "ssl_verify_cert": "true", "ssl_verify_identity": "true"}


def settings(**changes):
    server = {
        "implementation": "bundled",
        "hosts": ["results.example.com:13306"],
        "database": "celery_results",
        "username": "celery_worker",
        "password": NASTY,
        "tls_enabled": True,
        "tls_ca_file": "/etc/celery/tls/ca.crt",
        "tls_cert_file": "",
        "tls_key_file": "",
        "options": {"pool_recycle_seconds": 300},
    }
    return module.result_settings(SimpleNamespace(**(server | changes)))


def url_of(found):
    return make_url(found["result_backend"].partition("+")[2])


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
def test_every_name_is_a_setting_and_the_address_arrives_unchanged(implementation):
    found = settings(implementation=implementation)
    assert set(found) <= SETTING_KEYS
    url = url_of(found)
    assert (url.drivername, url.username, url.password) == ("mysql+pymysql", "celery_worker", NASTY)
    assert (url.host, url.port, url.database) == ("results.example.com", 13306, "celery_results")


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
def test_one_dictionary_holds_isolation_and_pool(implementation):
    options = settings(implementation=implementation)["database_engine_options"]
    assert options["isolation_level"] == "READ COMMITTED"
    assert options["pool_pre_ping"] is True
    assert options["pool_recycle"] == 300


def test_the_bundled_class_is_told_to_verify_chain_and_name():
    found = settings()
    assert found["result_backend"].startswith("celery_results.backends.database:DatabaseBackend+")
    assert dict(url_of(found).query) == TLS
    assert "connect_args" not in found["database_engine_options"]


def test_with_mutual_tls_a_certificate_is_shown():
    own = {"tls_cert_file": "/c.crt", "tls_key_file": "/c.key"}
    assert dict(url_of(settings(**own)).query) == {**TLS, "ssl_cert": "/c.crt", "ssl_key": "/c.key"}
    stock = settings(implementation="stock", **own)["database_engine_options"]["connect_args"]["ssl"]
    assert (stock["cert"], stock["key"]) == ("/c.crt", "/c.key")


def test_celerys_class_hands_pymysql_a_context_that_verifies():
    found = settings(implementation="stock")
    app = Celery(set_as_current=False)
    app.config_from_object({**found, "result_expires": 60})
    engine = app.backend.session_manager.get_engine(app.backend.url, **app.backend.engine_options)
    arguments = engine.dialect.create_connect_args(engine.url)[1]
    assert not any(name.startswith("ssl") for name in arguments), "SQLAlchemy's own TLS arguments would win"
    given = app.backend.engine_options["connect_args"]
    expected = {"ca": "/etc/celery/tls/ca.crt", "check_hostname": True, "verify_mode": "required"}
    assert given["ssl"] == expected
    assert 900 < given["read_timeout"] < 3600


def test_without_tls_nothing_of_it_is_said():
    assert dict(url_of(settings(tls_enabled=False)).query) == {}
    stock = settings(tls_enabled=False, implementation="stock")
    assert "ssl" not in stock["database_engine_options"]["connect_args"]
