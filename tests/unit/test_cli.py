"""The command line: verbs are found, errors are told in three lines, exit codes are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest

from celery_results import cli
from celery_results.errors import EnvFileError, UnreachableError
from celery_results.options import common_options

SECRET = "s3cret-pass"


@pytest.fixture
def verb(monkeypatch):
    """Put a verb of the test's own in the place of all others."""

    def install(function):
        monkeypatch.setattr(cli.Verbs, "get_command", lambda *_: click.command()(common_options(function)))

    return install


def raise_(error):
    raise error


def test_every_verb_is_found_and_has_help(capsys):
    assert {"copy", "doctor", "smoke", "verify"} <= set(cli.group.list_commands(click.Context(cli.group)))
    assert cli.main(["smoke", "--help"]) == 0
    assert "--client-env-file" in capsys.readouterr().out


def test_a_verb_that_does_not_exist_is_wrong_usage(capsys):
    assert cli.main(["smok"]) == 2
    assert "No such command" in capsys.readouterr().err


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_verb_gives_the_exit_code(verb, returned, code):
    verb(lambda common: returned if common else 9)
    assert cli.main(["any"]) == code


@pytest.mark.parametrize(("kind", "code"), [(EnvFileError, 2), (UnreachableError, 1)])
def test_an_error_is_told_in_three_lines(verb, capsys, kind, code):
    verb(lambda **_: raise_(kind(expected="this", found="that", do="something")))
    assert cli.main(["any"]) == code
    assert capsys.readouterr() == (
        "",
        "error: expected this\n       found    that\n       do       something\n",
    )


def test_an_error_is_json_where_json_was_asked_for(verb, capsys):
    verb(lambda **_: raise_(UnreachableError(expected="this", found="that", do="something")))
    assert cli.main(["any", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document == {"ok": False, "error": {"expected": "this", "found": "that", "do": "something"}}


def test_a_traceback_comes_with_debug_only_and_hides_secrets(verb, capsys, tmp_path):
    path = tmp_path / "celery.env"
    path.write_text(f'CELERYCONFIG_RESULT_PASSWORD="{SECRET}"\n')

    def fail(common):
        raise_(ValueError(f"a defect with {common.environment()['CELERYCONFIG_RESULT_PASSWORD']}"))

    verb(fail)
    assert cli.main(["any", "--env-file", str(path)]) == 1
    plain = capsys.readouterr().err
    assert cli.main(["any", "--env-file", str(path), "--debug"]) == 1
    debug = capsys.readouterr().err
    assert "ValueError: a defect with ********" in plain
    assert "Traceback" not in plain
    assert "Traceback" in debug
    assert SECRET not in plain + debug


def test_interrupted_is_130(verb):
    verb(lambda **_: raise_(KeyboardInterrupt()))
    assert cli.main(["any"]) == 130


def test_a_missing_env_file_is_unreadable_configuration(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("CELERYCONFIG_RESULT_NAME", raising=False)
    verb(lambda common: common.environment() and 0)
    assert cli.main(["any", "--config-directory", str(tmp_path)]) == 2
    assert f"the env file {tmp_path}/celery.env" in capsys.readouterr().err
    monkeypatch.setenv("CELERYCONFIG_RESULT_NAME", "redis")
    assert cli.main(["any", "--config-directory", str(tmp_path)]) == 0


def test_help_does_not_import_celery():
    script = "import sys, celery_results.cli as c; c.main(['smoke', '-h']); sys.exit('celery' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, capture_output=True)
