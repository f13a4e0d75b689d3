"""`make deploy backend=redis` on a machine with Debian, python3 and make."""

import re

from scenario_support import CeleryHost, Site, until
from testinfra.host import Host


def test_first_run_deploys_and_ends_with_a_plain_summary(site: Site) -> None:
    said = (site.ephemeral / "deploy-first.log").read_text()
    assert re.search(r"failed=0 ", said)
    end = said[-3000:]
    for promised in ("/etc/celery/celeryconfig.py", "/etc/celery/celery.env", "redis", "doctor"):
        assert promised in end


def test_second_run_changed_nothing(site: Site) -> None:
    said = (site.ephemeral / "deploy-second.log").read_text()
    assert re.findall(r"changed=(\d+)", said) != []
    assert set(re.findall(r"changed=(\d+)", said)) == {"0"}


def test_server_runs_by_its_init_script_and_is_enabled(server: Host) -> None:
    assert server.run("service redis-server status").rc == 0
    assert server.run("ls /etc/rc2.d/S*redis-server").rc == 0


def test_restart_by_the_init_script_keeps_results(server: Host, worker: CeleryHost) -> None:
    worker.python("app.backend.store_result('kept', 7, 'SUCCESS')")
    server.check_output("service redis-server restart")
    until(lambda: server.run("redis-admin ping").stdout.strip() == "PONG", 30, "the server answers")
    assert worker.python("print(app.AsyncResult('kept').get(timeout=10))") == "7"


def test_listens_on_loopback_only(server: Host) -> None:
    listening = server.check_output("cat /proc/net/tcp")
    # 00000000 is 0.0.0.0; state 0A is LISTEN.
    assert not re.search(r"\b00000000:[0-9A-F]{4} \S+ 0A", listening)
