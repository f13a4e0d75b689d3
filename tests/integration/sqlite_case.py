"""A SQLite database and the settings that lead to it, as the bundle deploys them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.integration.redis_lab import quoted

from celery_results.schema.upgrade import Options, run

ROOT = Path(__file__).parents[2]


class SqliteCase:
    """A private directory with the database, and one with the settings."""

    def __init__(self, directory: Path, implementation: str = "bundled") -> None:
        self.directory = directory / "results"
        self.directory.mkdir(mode=0o700)
        self.database = self.directory / "results.sqlite3"
        self.database.touch(mode=0o600)
        run(Options(url=f"sqlite:///{self.database}"), change=True)
        self.config = directory / "etc"
        self.config.mkdir()
        for name in ("base", "sqlite"):
            deployed = "celeryconfig" if name == "base" else f"celeryconfig_{name}"
            shutil.copy(ROOT / "files" / "celeryconfig" / f"{name}.py", self.config / f"{deployed}.py")
        for file, login in {"celery.env": "worker", "client.env": "client", "monitor.env": "monitor"}.items():
            self._write_env(self.config / file, login, implementation)

    def _write_env(self, path: Path, login: str, implementation: str) -> None:
        values = {
            "RESULT_NAME": "sqlite",
            "RESULT_SCHEME": "sqlite",
            "RESULT_HOSTS": "",
            "RESULT_DATABASE": str(self.database),
            "RESULT_TLS_ENABLED": "false",
            "RESULT_OPTIONS": json.dumps({"busy_timeout_seconds": 30, "synchronous": "full"}),
            "RESULT_IMPLEMENTATION": implementation,
            "RESULT_EXPIRES_SECONDS": "86400",
            "LOGIN": login,
        }
        path.write_text("".join(f"CELERYCONFIG_{name}={quoted(value)}\n" for name, value in values.items()))
        path.chmod(0o600)

    def weaken(self, old: str, new: str) -> None:
        """Change the deployed settings."""
        module = self.config / "celeryconfig_sqlite.py"
        text = module.read_text()
        assert old in text
        module.write_text(text.replace(old, new))
