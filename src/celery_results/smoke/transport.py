"""A private broker in a directory, for hosts whose settings name no broker."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kombu.transport import TRANSPORT_ALIASES, filesystem

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEME = "celery-results-private"
# Each look is one listdir of a nearly empty directory; kombu's own second would be most of a run's time.
POLLING_SECONDS = 0.02
_LONGEST_WAIT_SECONDS = 0.2


class Channel(filesystem.Channel):
    """kombu's, with messages that appear whole.

    The original creates the file under its final name and writes afterwards: a reader can take it empty.
    """

    def _put(  # type: ignore[override]  # kombu's classes do not agree with each other either
        self,
        queue: str,
        payload: Mapping[str, Any],
        **kwargs: object,
    ) -> None:
        del kwargs
        directory = Path(self.data_folder_out)
        name = f"{time.monotonic_ns():020d}_{uuid.uuid4().hex}.{queue}.msg"
        unfinished = directory / f"{name}.part"
        unfinished.write_text(json.dumps(payload), encoding="utf-8")
        unfinished.replace(directory / name)


class Transport(filesystem.Transport):
    """kombu's filesystem transport with the channel above."""

    Channel = Channel

    def drain_events(self, connection: object, timeout: float | None = None, **kwargs: object) -> None:
        """Return soon: Celery looks only between two calls whether it has been asked to stop."""
        timeout = min(timeout or _LONGEST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)
        super().drain_events(connection, timeout=timeout, **kwargs)  # type: ignore[no-untyped-call]


def settings(directory: Path) -> dict[str, Any]:
    """Give the broker settings for this directory (its owner's alone), and make kombu know the scheme."""
    TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"
    folders = {name: directory / name for name in ("messages", "control", "processed")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    return {
        "broker_url": f"{SCHEME}://",
        "broker_read_url": None,
        "broker_write_url": None,
        "broker_use_ssl": False,
        "broker_heartbeat": 0,
        "broker_transport_options": {
            "data_folder_in": str(folders["messages"]),
            "data_folder_out": str(folders["messages"]),
            "control_folder": str(folders["control"]),
            # Otherwise each message passes through the machine's shared temporary directory.
            "store_processed": True,
            "processed_folder": str(folders["processed"]),
            "polling_interval": POLLING_SECONDS,
        },
    }
