"""Secrets are generated once, private, the same for whoever asks first; what smoke said is told in words."""

import json
import multiprocessing
import stat
from pathlib import Path

import pytest
from ansible.errors import AnsibleLookupError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader
from ansible.template import Templar, trust_as_template
from plugins.filter.smoke import REFUSALS, smoke_failure, smoke_summary, smoke_witness
from plugins.lookup.bundle_secret import SecretError, generated_secret

from celery_results.smoke.catalog import CATALOG

PLUGINS = Path(__file__).parents[2] / "plugins"


def secret(directory: Path, name: str = "redis_worker_password", *, check_mode: bool = False) -> str:
    return generated_secret(name, directory, 40, check_mode=check_mode)


def lookup(name: str, variables: dict[str, object], **options: object) -> str:
    lookup_loader.add_directory(str(PLUGINS / "lookup"))
    templar = Templar(loader=DataLoader(), variables=variables)
    plugin = lookup_loader.get("bundle_secret", loader=DataLoader(), templar=templar)
    result: list[str] = plugin.run([name], variables, **options)
    return result[0]


@pytest.fixture
def state(tmp_path):
    return tmp_path / ".state"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secret_is_generated_once_and_private(state):
    first = secret(state)
    assert len(first) == 40
    assert first.isalnum()
    assert first.isascii()
    assert secret(state) == first
    assert secret(state, "redis_client_password") != first
    assert mode(state) == mode(state / "secrets") == 0o700
    assert mode(state / "secrets/redis_worker_password") == 0o600


def test_check_mode_writes_nothing_but_reads_what_is_there(state):
    assert secret(state, check_mode=True) != secret(state, check_mode=True)
    assert not state.exists()
    first = secret(state)
    assert secret(state, check_mode=True) == first


def race(state, barrier, queue):
    barrier.wait()
    queue.put([secret(state, f"secret{number}") for number in range(20)])


def test_sixteen_processes_agree_on_every_secret(state):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(16), context.Queue()
    processes = [context.Process(target=race, args=(state, barrier, queue)) for _ in range(16)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    assert all(answer == answers[0] for answer in answers)
    assert len(set(answers[0])) == 20
    # no temporary file is left
    assert {file.name for file in (state / "secrets").iterdir()} == {
        f"secret{number}" for number in range(20)
    }


def test_interrupted_write_leaves_no_secret_behind(state, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SecretError, match=r"No space left on device.*state_directory"):
        secret(state)
    assert not list((state / "secrets").iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"redis_worker_password is empty: .*vault_redis_worker_password"),
        ("\n", r"redis_worker_password is empty"),
        ("one\ntwo\n", r"has 2 lines"),
        (b"\xff\xfe", r"UTF-8"),
    ],
)
def test_unusable_file_is_named_with_its_remedy(state, content, message):
    secret(state)
    file = state / "secrets/redis_worker_password"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SecretError, match=message):
        secret(state)


def test_a_file_or_directory_open_to_others_is_refused(state):
    secret(state)
    file = state / "secrets/redis_worker_password"
    file.chmod(0o640)
    with pytest.raises(SecretError, match=rf"chmod 600 {file}"):
        secret(state)
    file.unlink()
    (state / "secrets").chmod(0o750)
    with pytest.raises(SecretError, match=rf"chmod 700 {state}/secrets"):
        secret(state)
    (state / "secrets").chmod(0o700)
    state.chmod(0o755)
    with pytest.raises(SecretError, match=rf"chmod 700 {state}"):
        secret(state)


def test_unreadable_file_is_named(state):
    (state / "secrets/redis_worker_password").mkdir(parents=True)
    (state / "secrets/redis_worker_password").chmod(0o700)
    with pytest.raises(
        SecretError, match=r"redis_worker_password.*Is a directory.*vault_redis_worker_password"
    ):
        secret(state)


def test_own_secret_wins_and_is_templated(state):
    variables = {
        "state_directory": str(state),
        "inventory_hostname": "db1",
        "vault_redis_worker_password": trust_as_template("{{ inventory_hostname }}-own"),
    }
    assert lookup("redis_worker_password", variables) == "db1-own"
    assert not state.exists()
    generated = lookup("redis_worker_password", variables | {"vault_redis_worker_password": ""}, length=20)
    assert len(generated) == 20
    assert (state / "secrets/redis_worker_password").read_text() == f"{generated}\n"


@pytest.mark.parametrize(
    ("name", "variables", "options", "message"),
    [
        ("a", {"vault_a": 123456}, {}, r"vault_a is not a text: put its value in quotes"),
        ("a", {"vault_a": trust_as_template("{{ missing }}")}, {}, r"vault_a cannot be resolved.*missing"),
        ("a", {}, {}, r"state_directory is None.*-i inventory/groups.yml"),
        ("a", {"state_directory": ".state"}, {}, r"state_directory is '.state', expected an absolute path"),
        ("../a", {}, {}, r"names no secret"),
        ("a", {}, {"length": 8}, r"length=8, expected at least 16"),
    ],
)
def test_wrong_use_is_refused_with_its_remedy(name, variables, options, message):
    with pytest.raises(AnsibleLookupError, match=message):
        lookup(name, variables, **options)


def check(name: str, status: str = "passed", note: str = "", remedy: str = "") -> dict[str, object]:
    return {"name": name, "status": status, "milliseconds": 1, "note": note, "remedy": remedy}


def smoke(*checks: dict[str, object], **more: object) -> dict[str, object]:
    ok = all(item["status"] != "failed" for item in checks)
    report = {"ok": ok, "backend": "redis", "broker": "private", "login": "worker", "checks": checks, **more}
    return {"rc": 0 if ok else 1, "stdout": json.dumps(report), "stderr": ""}


def test_refusals_are_those_of_the_catalog():
    refusals = [entry.name for entry in CATALOG if entry.kind.name.startswith("REFUSAL")]
    assert list(REFUSALS) == refusals


def test_failed_check_is_shown_with_what_to_do():
    text = smoke_failure(smoke(check("value"), check("expiry", "failed", "no TTL", "see result_expires")))
    assert text.splitlines() == [
        "value   passed",
        "expiry  FAILED       no TTL",
        "",
        "expiry: no TTL",
        "  do: see result_expires",
    ]


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ({"skipped": True}, ""),
        (smoke(check("value")), ""),
        ({"rc": 1, "stdout": "", "stderr": "Traceback"}, "celery-results smoke ended with 1: Traceback"),
        ({"rc": 0, "stdout": "no document", "stderr": ""}, "celery-results smoke ended with 0: None"),
        (
            {
                "rc": 2,
                "stdout": json.dumps({"ok": False, "error": {"expected": "a", "found": "b", "do": "c"}}),
            },
            "expected: a\nfound:    b\ndo:       c",
        ),
    ],
)
def test_smoke_that_says_nothing_is_a_failure(run, text):
    assert smoke_failure(run) == text


def test_client_is_given_the_witness_if_there_is_one():
    assert smoke_witness(smoke(check("value"), witness="abc")) == ["--witness", "abc"]
    assert smoke_witness(smoke(check("value"))) == smoke_witness({"skipped": True}) == []


def test_summary_says_what_is_where_and_what_was_proven():
    worker = smoke(
        check("value"),
        check("chord"),
        check("plain_text"),
        check("witness", "not_run"),
        check("forget", "not_offered"),
    )
    client = smoke(check("witness"), check("client_write"), login="client")
    text = smoke_summary(
        {"worker1": [worker, {"skipped": True}], "web1": [{"skipped": True}, client]},
        {"redis": ["db1"]},
        "/inventory/.state",
        ["proj.celery:app"],
    )
    assert "redis on db1" in text
    assert "2 checks and 1 refusals hold, 1 not run, 1 not offered (worker)" in text
    assert "1 checks and 1 refusals hold (client)" in text
    assert "celery-worker.service for proj.celery:app" in text
    assert "/inventory/.state" in text
    assert "nothing was proven" in smoke_summary({"worker1": [{"skipped": True}]}, {}, "/inventory/.state")
