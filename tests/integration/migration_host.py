"""The files of a host that takes part in a migration, as the celery role writes them: from two labs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.lab_files import LOGIN_FILES, write_env, write_settings

from celery_results.settings import read_env_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.postgresql_lab import DeployedPostgres
    from tests.integration.redis_lab import RedisLab

_SERVER = ("NAME", "SCHEME", "HOSTS", "DATABASE", "USERNAME", "PASSWORD", "OPTIONS", "TLS_")


def write_host(
    directory: Path,
    old: RedisLab | DeployedPostgres,
    new: RedisLab | DeployedPostgres,
    stage: str,
    client_stage: str = "",
) -> Path:
    """Write settings that store in two places; the monitor's login is that of the old store."""
    target = directory / "target"
    new.write_config(target)
    old.write_config(directory)
    for name in ("redis", "postgresql", "dual"):
        write_settings(directory, name)
    for file in set(LOGIN_FILES) - {"monitor.env"}:
        values = read_env_file(directory / file)
        for name, value in read_env_file(target / file).items():
            if name.startswith(tuple(f"CELERYCONFIG_RESULT_{part}" for part in _SERVER)):
                values[name.replace("_RESULT_", "_TARGET_")] = value
        values["CELERYCONFIG_MIGRATION_STAGE"] = (client_stage or stage) if file == "client.env" else stage
        values["CELERYCONFIG_MIGRATION_JOURNAL"] = str(directory / "mirror-journal")
        write_env(directory / file, values)
    return directory
