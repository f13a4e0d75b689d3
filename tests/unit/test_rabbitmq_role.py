"""What role rabbitmq computes, without a server."""

import base64
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
FILES = PROJECT / "roles" / "rabbitmq" / "files"


def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


rabbitmq = load(PROJECT / "plugins" / "filter" / "rabbitmq.py")


def test_a_hash_is_the_one_that_rabbitmq_computes() -> None:
    # RabbitMQ's own example of the algorithm: salt 908DC60A, password test12.
    salt = bytes.fromhex("908DC60A")
    assert base64.b64encode(salt + hashlib.sha256(salt + b"test12").digest()) == (
        b"kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    )
    found = base64.b64decode(rabbitmq.rabbitmq_password_hash("test12", "celery-worker"))
    assert found[4:] == hashlib.sha256(found[:4] + b"test12").digest()


def test_a_hash_is_the_same_each_time_and_another_for_another_login_or_secret() -> None:
    one = rabbitmq.rabbitmq_password_hash("secret", "celery-worker")
    assert one == rabbitmq.rabbitmq_password_hash("secret", "celery-worker")
    assert one != rabbitmq.rabbitmq_password_hash("secret", "celery-client")
    assert one != rabbitmq.rabbitmq_password_hash("secret2", "celery-worker")


def test_settings_are_written_as_rabbitmq_conf_wants_them() -> None:
    written = rabbitmq.rabbitmq_settings({"a.b": True, "c": [1, "x"], "d": 1.5})
    assert written == {"a.b": "true", "c.1": "1", "c.2": "x", "d": "1.5"}


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        ({"log.file.level": "debug", "tcp_listen_options.nodelay": True, "log.exchange": ["a"]}, []),
        ({"Log": 1}, ["Log"]),
        ({"a b": 1}, ["a b"]),
        ({"a": None}, ["a"]),
        ({"a": {"b": 1}}, ["a"]),
        ({"a": []}, ["a"]),
        ({"a": [["b"]]}, ["a"]),
        ({"a": "x\nlisteners.tcp.1 = 5672"}, ["a"]),
        ({"a": "x # y"}, ["a"]),
        ({"a": ""}, ["a"]),
    ],
)
def test_keys_that_cannot_be_written_are_named(config: dict[str, Any], bad: list[str]) -> None:
    assert rabbitmq.rabbitmq_bad_keys(config) == bad


@pytest.mark.parametrize(
    ("size", "count"), [("2GB", 2 * 10**9), ("512MiB", 2**29), ("7", 7), ("2 XB", 0), ("-1MB", 0), ("0.4", 0)]
)
def test_sizes(size: str, count: int) -> None:
    assert rabbitmq.rabbitmq_bytes(size) == count


@pytest.mark.parametrize(
    ("version", "own", "config", "said"),
    [
        ("4.3.0", [], {}, ""),
        ("4.3.0", ["celery==5.6.3"], {}, "RabbitMQ 4.3.0 cannot serve Celery 5.6"),
        ("4.3.0", ["Celery[redis] >= 5.4, < 5.7"], {}, "cannot serve Celery 5.6"),
        ("4.3.0", ["celery~=5.6.0"], {}, "cannot serve Celery 5.6"),
        ("4.10.1", ["celery==4.4"], {}, "cannot serve Celery 4.4"),
        ("4.3.0", ["celery>=5.4"], {}, ""),
        ("4.3.0", ["celery==5.10.0"], {}, ""),
        ("4.3.0", ["celery-batches==0.9", "celeryclient==1.0", "# celery==5.6"], {}, ""),
        ("4.3.0", ["django==5.0\ncelery==5.6.3 ; python_version > '3.8'\n"], {}, "cannot serve Celery 5.6"),
        ("4.0.5", ["celery==5.6.3"], {}, "This role has RabbitMQ 4.0.5 refuse"),
        ("4.0.5", ["celery==5.6.3"], {"deprecated_features.permit.transient_nonexcl_queues": True}, ""),
        (
            "4.3.0",
            ["celery==5.6.3"],
            {"deprecated_features.permit.transient_nonexcl_queues": True},
            "cannot serve",
        ),
        ("3.10.8", ["celery==5.6.3"], {}, ""),
        ("", ["celery==5.6.3"], {}, ""),
    ],
)
def test_pairs_of_releases_that_cannot_work_are_refused(
    version: str, own: list[str], config: dict[str, Any], said: str
) -> None:
    lock = (PROJECT / "requirements" / "celery-base.txt").read_text()
    refusal = rabbitmq.rabbitmq_celery_refusal(version, lock, own, config)
    assert (said in refusal) if said else refusal == ""


def test_a_lock_with_an_older_celery_is_refused_too() -> None:
    assert "cannot serve Celery 5.6" in rabbitmq.rabbitmq_celery_refusal(
        "4.3.1", "celery==5.6.3 \\\n", [], {}
    )


def test_every_pattern_of_permissions_is_anchored() -> None:
    text = (PROJECT / "roles/rabbitmq/vars/main/permissions.yml").read_text()
    for login in yaml.safe_load(text)["__rabbitmq_logins"]:
        for right in ("configure", "write", "read"):
            assert re.fullmatch(r"\^(\(.*\)|[^|]*)\$", login[right]), f"{login['name']} {right}"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Load the tool on an /etc/rabbitmq of its own."""
    monkeypatch.setenv("CELERY_RESULTS_RABBITMQ_ETC", str(tmp_path))
    monkeypatch.syspath_prepend(str(FILES))
    (tmp_path / "conf.d").mkdir()
    for name in ("ca.crt", "server.crt", "server.key"):
        (tmp_path / name).write_text(name)
    (tmp_path / "conf.d" / "90-celery-results.conf").write_text(
        "# ours\nlisteners.ssl.1 = 127.0.0.1:5671\nheartbeat = 60\n"
        + "".join(
            f"ssl_options.{key} = {tmp_path / name}\n"
            for key, name in (("cacertfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key"))
        )
    )
    (tmp_path / "rabbitmq-env.conf").write_text("NODENAME=rabbit@localhost\n")
    (tmp_path / "celery-results.json").write_text(
        '{"users": [{"name": "celery-worker", "password_hash": "x"}], "permissions": '
        '[{"user": "celery-worker", "vhost": "celery", "read": "^a$"}], "queues": []}'
    )
    module = load(FILES / "celery_results_rabbitmq.py")
    yield module
    sys.modules.pop("celery_results_rabbitmq_node", None)


def live(**definitions: Any) -> dict[str, Any]:
    there = {
        "users": [{"name": "celery-worker", "password_hash": "x", "tags": []}],
        "permissions": [{"user": "celery-worker", "vhost": "celery", "read": "^a$", "write": ""}],
        "topic_permissions": [],
    }
    return {"definitions": there | definitions, "started": 1e15, "identity": "1 2 boot"}


def test_a_node_that_has_everything_lacks_nothing(tool: Any) -> None:
    assert tool.missing(live()) == []
    assert tool.stale(live()) == {}


def test_what_a_node_has_otherwise_is_named_without_its_hash(tool: Any) -> None:
    changed = live(users=[{"name": "celery-worker", "password_hash": "old"}], permissions=[])
    assert tool.missing(changed) == ["users celery-worker", "permissions celery-worker celery"]


def test_guest_and_rights_besides_go_and_users_of_others_stay(tool: Any) -> None:
    here = live(
        users=[{"name": name} for name in ("celery-worker", "guest", "somebody")],
        permissions=[
            {"user": "celery-worker", "vhost": "/"},
            {"user": "somebody", "vhost": "/"},
            {"user": "celery-worker", "vhost": "celery"},
        ],
        topic_permissions=[{"user": "celery-worker", "vhost": "celery"}],
    )
    assert list(tool.stale(here)) == [
        "users guest (too many)",
        "permissions celery-worker / (too many)",
        "topic_permissions celery-worker celery (too many)",
    ]


def test_a_node_that_started_after_the_files_has_what_they_say(tool: Any) -> None:
    settings, files = tool.given(live())
    assert settings == tool.settings_of()
    assert set(files) == {"environment", "tls cacertfile", "tls certfile", "tls keyfile"}


def test_a_node_that_started_before_the_files_has_nothing_of_them(tool: Any) -> None:
    assert tool.given(live() | {"started": 1.0}) == ({}, {})


def test_a_node_that_was_given_settings_while_it_ran_keeps_them(tool: Any) -> None:
    tool.write_record(
        {"identity": "1 2 boot", "settings": {"a": "b"}, "files": {"plugins": "c"}, "users": []}
    )
    assert tool.given(live() | {"started": 1.0}) == ({"a": "b"}, {"plugins": "c"})


def test_sockets_that_others_reach_are_named(tool: Any) -> None:
    places = [["127.0.0.1", 5671], ["0.0.0.0", 5672], ["127.0.0.1", 15671], ["::1", 7]]  # noqa: S104
    now = live() | {"listening": places}
    assert tool.unexpected(now, tool.settings_of()) == ["0.0.0.0:5672"]
    assert tool.unexpected(live() | {"listening": []}, tool.settings_of()) == ["127.0.0.1:5671 (missing)"]


def test_text_in_an_expression_is_never_code(tool: Any) -> None:
    node = sys.modules["celery_results_rabbitmq_node"]
    assert node.binary('">>, os:cmd("x")') == "<<34,62,62,44,32,111,115,58,99,109,100,40,34,120,34,41>>"
    assert tool.binary("") == "<<>>"
