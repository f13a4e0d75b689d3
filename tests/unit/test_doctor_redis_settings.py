"""The Redis backend: its settings, and what the server says of itself, without a server."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis

from celery_results.doctor import certificates
from celery_results.doctor.servers.redis import options, state
from celery_results.doctor.subject import Subject

URL = "rediss://celery:secret@redis.example:6379/0"
PASSWORD = "s3cret/with#signs"


def certificate_file(path, *, days):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return str(path)


@pytest.fixture
def good(tmp_path):
    """Give settings without any finding."""
    return {
        "result_backend": URL,
        "result_expires": 3600,
        "redis_backend_use_ssl": {
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
            "ssl_check_hostname": True,
            "ssl_ca_certs": certificate_file(tmp_path / "ca.crt", days=365),
        },
        "redis_socket_timeout": 30.0,
        "redis_socket_connect_timeout": 5.0,
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 30,
    }


def findings(settings, environ=None):
    return list(options.check_settings(Subject(raw=settings, environ=environ or {})))


def codes(settings, environ=None):
    return [finding.code for finding in findings(settings, environ)]


def test_good_settings_give_no_finding(good):
    assert codes(good) == []


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("CRB201", {"result_backend": "redis://u:p@redis.example/0", "redis_backend_use_ssl": None}),
        ("CRB202", {"result_backend": "redis://u:p@127.0.0.1/0", "redis_backend_use_ssl": None}),
        ("CRB202", {"result_backend": "redis://u:p@localhost/0", "redis_backend_use_ssl": None}),
        ("CRB203", {"result_backend": f"{URL}?ssl_cert_reqs=CERT_NONE"}),
        ("CRB203", {"result_backend": f"{URL}?ssl_cert_reqs=none"}),
        ("CRB203", {"result_backend": f"{URL}?ssl_cert_reqs=optional"}),
        ("CRB204", {"result_backend": f"{URL}?ssl_check_hostname=false"}),
        ("CRB205", {"redis_backend_use_ssl": None}),
        ("CRB205", {"result_backend": "redis://h?ssl_cert_reqs=none", "redis_backend_use_ssl": None}),
        ("CRB205", {"result_backend": f"rediss://u:{PASSWORD}@h:6379/0"}),
        ("CRB205", {"result_backend": "rediss://u:p@h:6379/zero"}),
        ("CRB206", {"redis_backend_use_ssl": {"ssl_cert_reqs": "required"}}),
        ("CRB207", {"result_backend": "rediss://redis.example:6379/0"}),
        ("CRB208", {"redis_socket_connect_timeout": None}),
        ("CRB209", {"redis_socket_timeout": None}),
        ("CRB209", {"result_backend": f"{URL}?socket_timeout=0"}),
        ("CRB210", {"redis_socket_keepalive": False}),
        ("CRB210", {"redis_backend_health_check_interval": None}),
        ("CRB211", {"redis_max_connections": 1}),
        ("CRB211", {"result_backend": f"{URL}?max_connections=1"}),
        ("CRB212", {"redis_max_connections": 50}),
        ("CRB213", {"result_expires": None}),
        ("CRB213", {"result_expires": 0}),
        ("CRB213", {"result_expires": 0.5}),
        ("CRB213", {"result_expires": timedelta(milliseconds=500)}),
        ("CRB213", {"result_chord_expires": 0}),
        ("CRB213", {"result_failure_expires": 0}),
        ("CRB214", {"broker_url": "redis://other:login@redis.example:6379/1"}),
        ("CRB216", {"result_backend": f"{URL}?decode_responses=1", "result_compression": "gzip"}),
    ],
)
def test_setting(good, code, settings):
    assert codes(good | settings) == [code]


@pytest.mark.parametrize(
    "settings",
    [
        {"result_backend": "redis://u:p@redis.example/0"},  # TLS by redis_backend_use_ssl, new in 5.7
        {"result_backend": "redis", "redis_host": "h", "redis_password": "p"},
        {"result_backend": "redis+socket:///run/redis.sock?virtual_host=1", "redis_backend_use_ssl": None},
        {"redis_max_connections": 4},
        {"result_expires": timedelta(hours=1)},
        {"broker_url": "amqps://redis.example:6379//"},
        {"broker_url": "rediss://redis.example:6380/0"},
        {"broker_url": "rediss://broker.example:6379/0"},
    ],
)
def test_setting_that_is_right(good, settings):
    assert codes(good | settings) == []


def test_broker_of_the_environment_counts(good):
    assert codes(good, {"CELERY_BROKER_URL": "rediss://redis.example:6379/1"}) == ["CRB214"]


def test_sentinel_needs_a_master_name(good):
    settings = good | {"result_backend": "sentinel://:p@h1:26379/0;sentinel://:p@h2:26379/0"}
    assert codes(settings) == ["CRB215"]
    assert codes(settings | {"result_backend_transport_options": {"master_name": "results"}}) == []
    assert codes(settings | {"redis_backend_use_ssl": None}) == ["CRB215", "CRB201"]


def test_refused_settings_never_show_a_piece_of_the_password(good):
    (finding,) = findings(good | {"result_backend": f"rediss://u:{PASSWORD}@h:6379/0"})
    assert "s3cret" not in finding.found


@pytest.mark.parametrize(
    ("code", "tls"),
    [
        ("CRB163", {"ssl_ca_certs": "/nowhere/ca.crt"}),
        ("CRB163", {"ssl_certfile": "/nowhere/client.crt"}),
        ("CRB163", {"ssl_keyfile": "/nowhere/client.key"}),
        ("CRB163", {"ssl_ca_certs": __file__}),
    ],
)
def test_tls_file_that_cannot_be_used(good, code, tls):
    assert codes(good | {"redis_backend_use_ssl": good["redis_backend_use_ssl"] | tls}) == [code]


@pytest.mark.parametrize(("code", "days"), [("CRB164", -1), ("CRB165", 10)])
def test_certificate_in_the_settings_that_runs_out(good, tmp_path, code, days):
    old = certificate_file(tmp_path / "old.crt", days=days)
    tls = good["redis_backend_use_ssl"]
    assert codes(good | {"redis_backend_use_ssl": tls | {"ssl_ca_certs": old}}) == [code]
    assert codes(good | {"redis_backend_use_ssl": tls | {"ssl_certfile": old}}) == [code]


HEALTHY = {
    "redis_version": "8.0.2",
    "maxmemory": 1000,
    "used_memory": 100,
    "maxmemory_policy": "noeviction",
    "evicted_keys": 0,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "client_output_buffer_limit_disconnections": 0,
    "role": "master",
    "cluster_enabled": 0,
}


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"redis_version": "7.2.4", "valkey_version": "8.1.0"},
        {"used_memory": 750},
    ],
)
def test_healthy_server_gives_no_finding(told):
    assert list(state.judge(HEALTHY | told)) == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("CRB001", {"redis_version": ""}),
        ("CRB601", {"maxmemory_policy": "allkeys-lru"}),
        ("CRB601", {"maxmemory_policy": "volatile-lru"}),
        ("CRB602", {"maxmemory_policy": "volatile-ttl"}),
        ("CRB603", {"maxmemory": 0}),
        ("CRB604", {"used_memory": 751}),
        ("CRB605", {"used_memory": 960}),
        ("CRB606", {"evicted_keys": 3}),
        ("CRB607", {"aof_enabled": 0}),
        ("CRB608", {"aof_last_write_status": "err"}),
        ("CRB609", {"rdb_last_bgsave_status": "err"}),
        ("CRB610", {"aof_last_bgrewrite_status": "err"}),
        ("CRB611", {"client_output_buffer_limit_disconnections": 2}),
        ("CRB615", {"redis_version": "5.0.14"}),
        ("CRB616", {"redis_version": "6.2.7"}),
        ("CRB617", {"redis_version": "7.0.15"}),
        ("CRB618", {"role": "slave"}),
        ("CRB619", {"cluster_enabled": 1}),
    ],
)
def test_server_state(code, told):
    assert [finding.code for finding in state.judge(HEALTHY | told)] == [code]


class Clock(Redis):
    """A server that answers TIME."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def time(self, **_options):
        return int(self.seconds), int(self.seconds % 1 * 1e6)


@pytest.mark.parametrize(
    ("ahead", "said"), [(0, None), (1.9, None), (-1.9, None), (5, "ahead of"), (-5, "behind")]
)
def test_clock(ahead, said):
    found = list(state.clock(Clock(1000 + ahead), "", now=lambda: 1000.0))
    assert [finding.code for finding in found] == (["CRB614"] if said else [])
    assert not said or said in found[0].found


def test_slow_answer_is_no_clock_difference():
    times = iter([1000.0, 1009.0])
    assert list(state.clock(Clock(1001), "", now=lambda: next(times))) == []


@pytest.mark.parametrize(
    ("host", "names", "matches"),
    [
        ("redis.example", ["redis.example"], True),
        ("REDIS.example.", ["redis.EXAMPLE"], True),
        ("redis.example", ["*.example"], True),
        ("a.redis.example", ["*.example"], False),
        ("example", ["*."], False),
        ("10.0.0.1", ["10.0.0.1"], True),
        ("10.0.0.1", ["10.0.0.2", "redis.example"], False),
        ("0:0::1", ["::1"], True),
        ("redis.example", [], False),
    ],
)
def test_name_in_certificate(host, names, matches):
    assert certificates.name_matches(host, names) is matches
