"""A RabbitMQ node for doctor's tests: certificates that last, and further listeners, good and bad."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.integration.doctor_redis_server import Authority
from tests.integration.lab_files import free_port
from tests.integration.rabbitmq_lab import VHOST, RabbitmqLab, permissions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TLS_VERSIONS = "{versions,['tlsv1.3','tlsv1.2']}"
OLD_VERSIONS = (
    "{versions,['tlsv1.1','tlsv1.2']},"
    "{ciphers,ssl:cipher_suites(all,'tlsv1.1')++ssl:cipher_suites(all,'tlsv1.2')}"
)
WANTS_CERTIFICATE = "{verify,verify_peer},{fail_if_no_peer_cert,true}"


@dataclass
class DoctorNode(RabbitmqLab):
    """The lab's node, whose own certificates are for a day, with an authority of doctor's tests."""

    ports: dict[str, int] = field(default_factory=dict)

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        long_lived = Authority(self.directory, "doctor-ca")
        certificate, key = long_lived.issue("node", addresses=(self.address,))
        self.config = {
            "ssl_options.cacertfile": long_lived.file,
            "ssl_options.certfile": certificate,
            "ssl_options.keyfile": key,
        }
        self.long_lived = long_lived
        super().start()

    def _prepare(self) -> None:
        super()._prepare()
        self.authority: Any = self.long_lived

    def open_listeners(self) -> None:
        """Open all further listeners in one call; each is named by what a client meets there."""
        stranger = Authority(self.directory, "stranger")
        issued = {
            "expired": self.long_lived.issue("expired", days=-3, addresses=(self.address,)),
            "soon": self.long_lived.issue("soon", days=12.5, addresses=(self.address,)),
            "misnamed": self.long_lived.issue("misnamed", addresses=("127.1.2.3",)),
            "stranger": stranger.issue("strangers", addresses=(self.address,)),
        }
        good = self.directory / "node.crt", self.directory / "node.key"
        listeners = {name: (pair, TLS_VERSIONS) for name, pair in issued.items()} | {
            "old": (good, OLD_VERSIONS),
            "mutual": (good, f"{TLS_VERSIONS},{WANTS_CERTIFICATE}"),
        }
        self.ports = {name: free_port(self.address) for name in listeners}
        self.evaluate(
            ", ".join(
                self._listener(self.ports[name], pair, options) for name, (pair, options) in listeners.items()
            )
            + "."
        )

    def _listener(self, port: int, pair: tuple[Path, Path], options: str) -> str:
        return (
            f'ok = rabbit_networking:start_ssl_listener({{"{self.address}", {port}}}, '
            f'[{{cacertfile,"{self.authority.file}"}},{{certfile,"{pair[0]}"}},{{keyfile,"{pair[1]}"}},'
            f"{options}], 1)"
        )

    @contextlib.contextmanager
    def permitted(self, login: str, **changes: str) -> Iterator[None]:
        """Change what a login may do, for one test."""
        usual = permissions(self.queue_type)[login]
        try:
            self._permit(login, {**usual, **changes})
            yield
        finally:
            self._permit(login, usual)

    def _permit(self, login: str, patterns: Mapping[str, str]) -> None:
        wanted = [patterns[name] for name in ("configure", "write", "read")]
        self.control("set_permissions", "--vhost", VHOST, f"celery-{login}", *wanted)

    def everything(self) -> str:
        """Give all that doctor might have made or taken away: queues, exchanges, bindings."""
        return self.evaluate(
            f'V = <<"{VHOST}">>, lists:sort([rabbit_amqqueue:info(Q, [name, arguments]) '
            "|| Q <- rabbit_amqqueue:list(V)]) ++ lists:sort(rabbit_exchange:list(V)) "
            "++ lists:sort(rabbit_binding:list(V))."
        )
