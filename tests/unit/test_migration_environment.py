"""The environment of one store of a migration by itself."""

from __future__ import annotations

import pytest

from celery_results.backends.dual.options import NEW, STAGES
from celery_results.settings import RESULT, TARGET, TARGET_FIRST, alone, primary_role, stage

BOTH = {
    "PATH": "/bin",
    "CELERYCONFIG_LOGIN": "worker",
    "CELERYCONFIG_MIGRATION_STAGE": "cutover",
    "CELERYCONFIG_MIGRATION_JOURNAL": "/var/lib/celery/mirror-journal",
    "CELERYCONFIG_RESULT_NAME": "redis",
    "CELERYCONFIG_RESULT_HOSTS": "a:1",
    "CELERYCONFIG_RESULT_TLS_ENABLED": "true",
    "CELERYCONFIG_RESULT_TLS_CERT_FILE": "/old.crt",
    "CELERYCONFIG_RESULT_EXPIRES_SECONDS": "60",
    "CELERYCONFIG_RESULT_IMPLEMENTATION": "bundled",
    "CELERYCONFIG_TARGET_NAME": "mysql",
    "CELERYCONFIG_TARGET_HOSTS": "b:2",
    "CELERYCONFIG_TARGET_TLS_ENABLED": "false",
}
KEPT = {
    "PATH": "/bin",
    "CELERYCONFIG_LOGIN": "worker",
    "CELERYCONFIG_RESULT_EXPIRES_SECONDS": "60",
    "CELERYCONFIG_RESULT_IMPLEMENTATION": "bundled",
}


def test_the_target_leads_in_the_stages_whose_primary_is_the_new_side():
    assert {name for name, each in STAGES.items() if each.primary == NEW} == TARGET_FIRST
    for name in STAGES:
        environ = {**BOTH, "CELERYCONFIG_MIGRATION_STAGE": name}
        assert stage(environ) == name
        assert primary_role(environ) == (TARGET if name in TARGET_FIRST else RESULT)


@pytest.mark.parametrize(
    ("role", "server"),
    [
        (
            RESULT,
            {
                "CELERYCONFIG_RESULT_NAME": "redis",
                "CELERYCONFIG_RESULT_HOSTS": "a:1",
                "CELERYCONFIG_RESULT_TLS_ENABLED": "true",
                "CELERYCONFIG_RESULT_TLS_CERT_FILE": "/old.crt",
            },
        ),
        (
            TARGET,
            {
                "CELERYCONFIG_RESULT_NAME": "mysql",
                "CELERYCONFIG_RESULT_HOSTS": "b:2",
                "CELERYCONFIG_RESULT_TLS_ENABLED": "false",
            },
        ),
    ],
)
def test_one_store_alone_has_nothing_of_the_other(role, server):
    assert alone(BOTH, role) == KEPT | server


def test_without_a_migration_nothing_changes():
    environ = {"CELERYCONFIG_RESULT_NAME": "redis", "CELERYCONFIG_TARGET_NAME": "mysql"}
    assert alone(environ, RESULT) == environ
    assert (stage(environ), primary_role(environ)) == ("", RESULT)
