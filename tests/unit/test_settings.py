"""Env files, the settings module and the connection: read as sh, systemd and Celery would read them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from celery_results.errors import EnvFileError, SettingsError
from celery_results.redaction import redactor_for
from celery_results.settings import (
    OVERRIDES,
    connection_from_env,
    environment,
    load_settings,
    read_env_file,
)

AWKWARD = [
    'a"b\\c$d`e f',
    "it's",
    "",
    " leading and trailing ",
    "#no;comment",
    "ünïcode €",
    "\\$",
    '{"a": [1]}',
]
RESULT = {
    "CELERYCONFIG_RESULT_NAME": "redis",
    "CELERYCONFIG_RESULT_SCHEME": "rediss",
    "CELERYCONFIG_RESULT_HOSTS": "one:6379,[2001:db8::1]:6380",
    "CELERYCONFIG_RESULT_DATABASE": "0",
    "CELERYCONFIG_RESULT_USERNAME": "celery-worker",
    "CELERYCONFIG_RESULT_PASSWORD": "s3cret:/@#%",
    "CELERYCONFIG_RESULT_TLS_ENABLED": "true",
    "CELERYCONFIG_RESULT_TLS_CA_FILE": "/ca.crt",
    "CELERYCONFIG_RESULT_OPTIONS": '{"global_keyprefix": "app1_"}',
}


def quoted(value):
    return '"' + "".join(f"\\{c}" if c in '\\"$`' else c for c in value) + '"'


@pytest.mark.parametrize("value", AWKWARD)
def test_env_file_gives_the_values_that_the_shell_gives(tmp_path, value):
    path = tmp_path / "celery.env"
    path.write_text(f"# by hand\n\nNAME={quoted(value)}\n")
    script = f'set -a; . {path}; exec "{sys.executable}" -c "import os; print(ascii(os.environ[\'NAME\']))"'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert read_env_file(path) == {"NAME": value}
    assert shell.stdout.strip() == ascii(value)


def test_env_file_takes_bare_and_single_quoted_values(tmp_path):
    path = tmp_path / "celery.env"
    path.write_text('BARE=redis://host:1/0\nSINGLE=\'{"a": "$b"}\'\nEMPTY=\n')
    assert read_env_file(path) == {"BARE": "redis://host:1/0", "SINGLE": '{"a": "$b"}', "EMPTY": ""}


@pytest.mark.parametrize(
    "line",
    [
        'A="$hidden"',
        'A="hidden',
        "A=hid den",
        "export A=hidden",
        'A="hid"den',
        "A='hid\\den'",
        "hidden",
        'A="`hidden`"',
    ],
)
def test_env_file_refuses_what_sh_and_systemd_read_differently_and_hides_it(tmp_path, line):
    path = tmp_path / "celery.env"
    path.write_text(f"FINE=1\n{line}\n")
    with pytest.raises(EnvFileError, match="line 2") as caught:
        read_env_file(path)
    assert "hid" not in str(caught.value).replace(str(path), "")


def test_missing_env_file_names_the_remedy(tmp_path):
    with pytest.raises(EnvFileError, match="make deploy"):
        read_env_file(tmp_path / "celery.env")


def test_environment_lets_nothing_of_the_caller_shine_through(tmp_path):
    path = tmp_path / "celery.env"
    path.write_text('CELERYCONFIG_LOGIN="worker"\n')
    base = {"PATH": "/bin", "CELERYCONFIG_BROKER_URL": "amqp://stale", **dict.fromkeys(OVERRIDES, "stale")}
    assert environment(path, base) == {"PATH": "/bin", "CELERYCONFIG_LOGIN": "worker"}
    assert environment(None, base) == base


def test_settings_are_loaded_afresh_and_leave_no_trace(tmp_path):
    (tmp_path / "celeryconfig.py").write_text(
        "import os\nimport json as _json\nfrom celeryconfig_part import part\n"
        "url = os.environ['CELERYCONFIG_X']\n_hidden = 1\n"
    )
    (tmp_path / "celeryconfig_part.py").write_text("part = 'part'\n")
    before = (dict(os.environ), list(sys.path), set(sys.modules))
    for value in ("one", "two"):
        assert load_settings(tmp_path, {"CELERYCONFIG_X": value}) == {"url": value, "part": "part"}
    assert before == (dict(os.environ), list(sys.path), set(sys.modules))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["celeryconfig.py", "celeryconfig_part.py"]


def test_settings_that_cannot_be_imported_say_why_without_secrets(tmp_path):
    (tmp_path / "celeryconfig.py").write_text(
        "import os\nraise ValueError('bad ' + os.environ['CELERYCONFIG_RESULT_PASSWORD'])\n"
    )
    with pytest.raises(SettingsError, match="ValueError: bad ") as caught:
        load_settings(tmp_path, RESULT)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(SettingsError, match="no such file"):
        load_settings(tmp_path / "nowhere", RESULT)


def test_connection_is_parsed_and_never_shows_its_password():
    connection = connection_from_env(RESULT)
    assert connection is not None
    assert connection.hosts == (("one", 6379), ("2001:db8::1", 6380))
    assert (connection.tls.enabled, connection.tls.ca_file) == (True, "/ca.crt")
    assert connection.options == {"global_keyprefix": "app1_"}
    assert str(connection) == "rediss://celery-worker@one:6379,[2001:db8::1]:6380/0"
    assert connection.password == "s3cret:/@#%"
    assert "s3cret" not in repr(connection) + str(connection)
    assert connection_from_env(RESULT, "BROKER") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOSTS", "one"),
        ("HOSTS", "one:0"),
        ("HOSTS", "one:65536"),
        ("HOSTS", ":6379"),
        ("TLS_ENABLED", "yes"),
        ("OPTIONS", "[]"),
        ("OPTIONS", "{"),
    ],
)
def test_connection_refuses_nonsense_by_the_variables_name(name, value):
    with pytest.raises(SettingsError, match=f"CELERYCONFIG_RESULT_{name}"):
        connection_from_env({**RESULT, f"CELERYCONFIG_RESULT_{name}": value})


def test_secrets_are_masked_in_every_form():
    clean = redactor_for({**RESULT, "CELERYCONFIG_BROKER_URL": "amqps://me:br%2Foker@host//"}).clean
    text = "s3cret:/@#% s3cret%3A%2F%40%23%25 br/oker br%2Foker redis://:other@h redis://u:an:other@h/0 redis://h/0"
    assert clean(text) == (
        "******** ******** ******** ******** redis://:********@h redis://u:********@h/0 redis://h/0"
    )
