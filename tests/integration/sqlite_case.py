"""A SQLite database and the settings that lead to it, as the bundle deploys them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.integration.lab_files import LOGIN_FILES, weaken, write_env, write_settings

from celery_results.schema.upgrade import Options, run

if TYPE_CHECKING:
    from pathlib import Path


class SqliteCase:
    """A private directory with the database, and one with the settings."""

    def __init__(self, directory: Path, implementation: str = "bundled") -> None:
        self.directory = directory / "results"
        self.directory.mkdir(mode=0o700)
        self.database = self.directory / "results.sqlite3"
        self.database.touch(mode=0o600)
        run(Options(url=f"sqlite:///{self.database}"), change=True)
        self.config = directory / "etc"
        write_settings(self.config, "sqlite")
        for file, login in LOGIN_FILES.items():
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
        write_env(path, {f"CELERYCONFIG_{name}": value for name, value in values.items()})

    def weaken(self, old: str, new: str) -> None:
        """Change the deployed settings."""
        weaken(self.config / "celeryconfig_sqlite.py", (old, new))
