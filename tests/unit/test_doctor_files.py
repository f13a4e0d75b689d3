"""Files that hold settings and secrets, and the settings that we deploy ourselves."""

import pytest
from tests.unit.test_doctor_redis_settings import certificate_file

from celery_results.doctor import address, files, names, values
from celery_results.doctor.servers import redis
from celery_results.doctor.subject import Subject, read_subject

CLEAN = "from os import environ as _environ\nresult_backend = f\"redis://:{_environ['SECRET']}@h/0\"\n"


def codes(path=None, env_file=None):
    subject = Subject(raw={}, sources=(path,) if path else (), env_file=env_file)
    return [finding.code for finding in files.check(subject)]


@pytest.fixture
def source(tmp_path):
    def write(text, mode):
        path = tmp_path / "celeryconfig.py"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o600])
def test_source_without_a_secret(source, mode):
    assert codes(source(CLEAN, mode)) == []


@pytest.mark.parametrize(
    "line",
    [
        'result_backend = "redis://:hunter2@h:6379/0"',
        'result_backend = "rediss://user:hunter2@" + "h:6379/0"',
        'redis_password = "hunter2"',
        'redis_password: str = "hunter2"',
        'sentinel_kwargs = {"password": "hunter2"}',
        'broker_url = environ.get("BROKER", "amqp://guest:guest@h//")',
    ],
)
@pytest.mark.parametrize(("mode", "code"), [(0o644, "CRB161"), (0o640, "CRB160")])
def test_secret_in_the_source(source, line, mode, code):
    subject = Subject(raw={}, sources=(source(f"from os import environ\n{line}\n", mode),))
    (finding,) = files.check(subject)
    assert finding.code == code
    assert "line 2" in finding.found
    assert "hunter2" not in finding.found


@pytest.mark.parametrize(
    "line",
    [
        'redis_password = ""',
        'redis_password = _environ["P"]',
        'result_backend = "redis://h:6379/0"',
        '"""user:x@h"""',
    ],
)
def test_source_that_only_looks_like_a_secret(source, line):
    assert codes(source(f"from os import environ as _environ\n{line}\n", 0o644)) == []


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_source_that_others_can_change(source, mode):
    assert codes(source(CLEAN, mode)) == ["CRB162"]


def test_source_that_is_no_python_is_said(source):
    assert codes(source("result_backend = = 1", 0o644)) == ["CRB001"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o640, []), (0o600, []), (0o644, ["CRB161"]), (0o660, ["CRB162"]), (0o666, ["CRB161", "CRB162"])],
)
def test_env_file(source, mode, expected):
    assert codes(env_file=source('A="b"\n', mode)) == expected


def environment(login, ca_file):
    return f"""
CELERYCONFIG_LOGIN="{login}"
CELERYCONFIG_RESULT_NAME="redis"
CELERYCONFIG_RESULT_SCHEME="rediss"
CELERYCONFIG_RESULT_HOSTS="redis.example:6379"
CELERYCONFIG_RESULT_DATABASE="0"
CELERYCONFIG_RESULT_USERNAME="celery-{login}"
CELERYCONFIG_RESULT_PASSWORD="p@ss/w#rd of {login}"
CELERYCONFIG_RESULT_TLS_ENABLED="true"
CELERYCONFIG_RESULT_TLS_CA_FILE="{ca_file}"
CELERYCONFIG_RESULT_TLS_CERT_FILE=""
CELERYCONFIG_RESULT_TLS_KEY_FILE=""
CELERYCONFIG_RESULT_OPTIONS="{{}}"
CELERYCONFIG_RESULT_EXPIRES_SECONDS="86400"
CELERYCONFIG_RESULT_EXTENDED="false"
CELERYCONFIG_RESULT_SERIALIZER="json"
"""


def test_deployed_settings_give_no_finding(tmp_path, pytestconfig):
    """What files/celeryconfig says, with the environment that the celery role writes."""
    ca_file = certificate_file(tmp_path / "ca.crt", days=3650)
    env_files = [tmp_path / f"{login}.env" for login in ("worker", "monitor")]
    for path in env_files:
        path.touch(mode=0o640)
        path.write_text(environment(path.stem, ca_file))
    deployed = tmp_path / "celery"
    deployed.mkdir()
    sources = pytestconfig.rootpath / "files" / "celeryconfig"
    for name, target in (("base.py", "celeryconfig.py"), ("redis.py", "celeryconfig_redis.py")):
        (deployed / target).write_bytes((sources / name).read_bytes())
        (deployed / target).chmod(0o644)

    subject = read_subject(deployed, "celeryconfig", *env_files)

    checks = (names.check, values.check, address.check, files.check, redis.check_settings)
    assert [finding for check in checks for finding in check(subject)] == []
    assert subject.monitor_settings is not None
    assert "celery-monitor" in subject.monitor_settings["result_backend"]
