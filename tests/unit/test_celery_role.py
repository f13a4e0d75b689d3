"""The celery role's files, as far as they can be tested without a host."""

import json
import re
import subprocess
from pathlib import Path

import jinja2
import pytest
import yaml
from ansible.plugins.filter.core import FilterModule as Core

ROLE = Path(__file__).parents[2] / "roles" / "celery"
NASTY = """qu"o'te \\back $dol `tick` %p #hash ;semi !bang $(id) ~ \\n \\" é"""


def answer(**changes):
    return {
        "name": "redis",
        "scheme": "rediss",
        "hosts": [{"host": "results.example.com", "port": 6379}],
        "database": "0",
        "username": "celery-worker",
        "password": NASTY,
        "tls": {"enabled": True, "ca_file": "/etc/celery/tls/ca.crt", "cert_file": "", "key_file": ""},
        "roles": ["broker", "result"],
        "options": {"implementation": "redis", "global_keyprefix": "a$b"},
        "python_packages": ["redis"],
    } | changes


def render(login="worker", **changes):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLE / "templates"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - an environment file, as Ansible renders it
    )
    environment.filters.update(Core().filters())
    variables = {
        "ansible_managed": "Ansible managed",
        "__celery_configuration": "/etc/celery",
        "item": {"name": "celery.env", "login": login},
        "__celery_result": {login: answer()},
        "__celery_broker": {},
        "celery_result_expires_seconds": 86400,
        "celery_result_extended": False,
        "celery_result_serializer": "json",
        "celery_result_backend_implementation": "bundled",
        "celery_broker_url": "",
        "celery_broker_tls_ca_file": "",
    } | changes
    return environment.get_template("celery.env.j2").render(variables)


def read_by_sh(text, tmp_path):
    file = tmp_path / "celery.env"
    file.write_text(text)
    output = subprocess.run(
        ["env", "-i", "/bin/sh", "-euc", 'set -a; . "$1"; /usr/bin/env -0', "sh", file],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    pairs = (pair.split("=", 1) for pair in output.split("\0") if "=" in pair)
    return {name: value for name, value in pairs if name.startswith("CELERYCONFIG_")}


def read_by_systemd_rules(text):
    """Read as systemd does: in double quotes, a backslash escapes only what it also escapes in sh."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    variables = {}
    for line in lines:
        match = re.fullmatch(r'([A-Z_]+)="((?:[^"\\$`]|\\["\\$`])*)"', line)
        assert match
        variables[match[1]] = re.sub(r'\\(["\\$`])', r"\1", match[2])
    return variables


def test_sh_reads_any_password_back_unchanged(tmp_path):
    variables = read_by_sh(render(), tmp_path)
    assert variables["CELERYCONFIG_RESULT_PASSWORD"] == NASTY
    assert json.loads(variables["CELERYCONFIG_RESULT_OPTIONS"])["global_keyprefix"] == "a$b"


def test_sh_and_systemd_read_the_same(tmp_path):
    text = render(__celery_broker={"worker": answer(database="1")})
    assert read_by_sh(text, tmp_path) == read_by_systemd_rules(text)


def test_addresses_of_ip_version_6_are_in_brackets():
    text = render(
        __celery_result={"worker": answer(hosts=[{"host": "::1", "port": 1}, {"host": "h", "port": 2}])}
    )
    assert read_by_systemd_rules(text)["CELERYCONFIG_RESULT_HOSTS"] == "[::1]:1,h:2"


@pytest.mark.parametrize(("login", "present"), [("worker", True), ("client", True), ("monitor", False)])
def test_the_external_brokers_url_is_for_those_who_use_it(login, present):
    variables = read_by_systemd_rules(render(login, celery_broker_url="amqps://u:p@h//"))
    assert ("CELERYCONFIG_BROKER_URL" in variables) is present


def test_no_variable_is_one_that_celery_reads_by_itself():
    names = read_by_systemd_rules(
        render(__celery_broker={"worker": answer()}, celery_broker_url="amqps://h//")
    )
    assert all(name.startswith("CELERYCONFIG_") for name in names)


def test_every_entry_of_the_spec_has_its_task_file_and_every_default_is_in_the_spec():
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    assert all((ROLE / f"tasks/{entry}.yml").is_file() for entry in specs)
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    options = specs["main"]["options"]
    assert set(options) - set(defaults) == {"celery_app"}
    assert {name: options[name]["default"] for name in defaults} == defaults


def test_the_role_names_no_backend_and_no_group():
    for file in [*ROLE.glob("tasks/*.yml"), *ROLE.glob("vars/*.yml"), *ROLE.glob("templates/*")]:
        code = re.sub(r"#.*|message: .*|`-e broker=redis`", "", file.read_text())
        code = re.sub(r"\^\(amqp\|pyamqp\|redis\|sentinel\)", "", code)  # schemes of an external URL
        assert not re.search(r"\b(redis|postgresql|mysql|sqlite|rabbitmq|mongodb|groups)\b", code), file.name


def test_unit_settings_hold_no_secret():
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    text = json.dumps([variables["__celery_service"], variables["__celery_commands"]])
    assert "password" not in text
    assert "url" not in text
