"""What every deployment promises, whatever its backend and topology."""

import json
import stat
import subprocess
from typing import Any

import pytest
from scenario_support import CeleryHost, Site
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner


def celery_hosts(hosts: AnsibleRunner) -> list[Host]:
    return [hosts.get_host(name) for group in ("celery", "celery_client") for name in hosts.get_hosts(group)]


def test_smoke_proves_every_celery_host(hosts: AnsibleRunner) -> None:
    for host in celery_hosts(hosts):
        code, report = CeleryHost(host).cli("smoke")
        assert code == 0, json.dumps(report, indent=1)
        statuses = [check["status"] for check in report["checks"]]
        assert statuses.count("passed") >= 5
        assert "failed" not in statuses


def test_doctor_finds_nothing_to_mend(hosts: AnsibleRunner) -> None:
    for host in celery_hosts(hosts):
        code, report = CeleryHost(host).cli("doctor")
        assert code == 0, json.dumps(report, indent=1)
        warnings = {finding["code"] for finding in report["findings"] if finding["severity"] == "warning"}
        # CRB214: queues and results share a memory limit; true where a scenario asks for -e broker=redis.
        assert warnings <= {"CRB214"}, json.dumps(report, indent=1)


@pytest.mark.parametrize(
    ("path", "mode", "group"),
    [
        ("/etc/celery", 0o755, "root"),
        ("/etc/celery/celeryconfig.py", 0o644, "root"),
        ("/etc/celery/celery.env", 0o640, "celery"),
        ("/etc/celery/tls/ca.crt", 0o644, "celery"),
        ("/var/lib/celery", 0o750, "celery"),
    ],
)
def test_files_on_a_celery_host(hosts: AnsibleRunner, path: str, mode: int, group: str) -> None:
    for host in celery_hosts(hosts):
        found = host.file(path)
        assert stat.S_IMODE(found.mode) == mode
        assert found.group == group


def test_secrets_stay_where_they_belong(hosts: AnsibleRunner, site: Site) -> None:
    secrets = site.secrets()
    assert secrets
    for name in hosts.get_hosts("all"):
        host = hosts.get_host(name)
        processes = host.check_output("ps -eo args ww")
        units = host.run(
            "cat /etc/systemd/system/*.service /etc/systemd/system/*/*.conf /etc/init.d/*"
        ).stdout
        public = host.run(
            "find /etc /opt/celery /usr/local /var/log -type f -perm /o=r -size -2M | xargs -r cat | tr -cd '[:print:]\\n'"
        ).stdout
        for secret_name, secret in secrets.items():
            assert secret not in processes, secret_name
            assert secret not in units, secret_name
            assert secret not in public, secret_name


def test_rendered_scripts_are_sound(hosts: AnsibleRunner) -> None:
    """What shellcheck cannot judge as a template."""
    checked = 0
    for name in hosts.get_hosts("all"):
        host = hosts.get_host(name)
        found = host.run("grep -lsE '^#!/bin/(ba)?sh' /usr/local/sbin/* /opt/celery/* /etc/init.d/celery-*")
        for path in found.stdout.split():
            script = host.file(path).content_string
            judged = subprocess.run(
                ["shellcheck", "-"], input=script, capture_output=True, text=True, check=False
            )
            assert judged.returncode == 0, f"{path}: {judged.stdout}"
            checked += 1
    assert checked


def test_state_is_private(site: Site) -> None:
    assert site.state("stat -c %a .").strip() == "700"
    private = site.state("find . -path './secrets/*' -o -name '*.key' | xargs stat -c '%a %n'").splitlines()
    assert len(private) >= 4
    for line in private:
        assert line.startswith("600 "), line


def settings_of(worker: CeleryHost) -> dict[str, Any]:
    return dict(
        json.loads(
            worker.python(
                "import json; print(json.dumps({k: app.conf[k] for k in "
                "('accept_content', 'result_serializer', 'result_extended', 'enable_utc', 'timezone', "
                "'result_backend_always_retry', 'result_backend_max_retries')}))"
            )
        )
    )


def test_celery_reads_the_safe_settings(worker: CeleryHost) -> None:
    settings = settings_of(worker)
    assert settings["accept_content"] == ["json"]
    assert settings["result_serializer"] == "json"
    assert settings["result_extended"] is False
    assert settings["enable_utc"] is True
    assert settings["timezone"] == "UTC"
    assert settings["result_backend_always_retry"] is True
    assert 0 < settings["result_backend_max_retries"] < 1000
