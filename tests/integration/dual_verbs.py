"""The verbs as a user runs them on a host that takes part in a migration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.integration.copy_case import SOURCE
from tests.integration.verbs_support import Ran

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.dual_case import Case

SETTINGS = """
import json as _json
import os as _os
import pathlib as _pathlib
globals().update(_json.loads(_pathlib.Path(_os.environ["CELERYCONFIG_RESULT_SETTINGS"]).read_text()))
"""


def deploy(case: Case, stage: str | None, name: str = "celery.env", **more: Any) -> Path:
    """Write the settings of a stage, or of one side alone, as a host has them; give the directory."""
    directory = case.directory / "etc"
    directory.mkdir(exist_ok=True)
    (directory / "celeryconfig.py").write_text(SETTINGS)
    settings = directory / f"{name}.json"
    settings.write_text(json.dumps(case.settings(stage) | more))
    (directory / name).write_text(
        f"CELERYCONFIG_RESULT_NAME=redis\nCELERYCONFIG_RESULT_SETTINGS='{settings}'\n"
    )
    return directory


def run_verb(directory: Path, verb: str, *arguments: str, given: str = "") -> Ran:
    """Run a verb to its end; --json unless the arguments say --text."""
    form = [] if "--text" in arguments else ["--json"]
    rest = [argument for argument in arguments if argument != "--text"]
    ran = subprocess.run(
        [sys.executable, "-m", "celery_results", verb, "--config-directory", str(directory), *form, *rest],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        input=given,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def compared(case: Case) -> Ran:
    """Compare both sides, as a host does that has their env files."""
    directory = deploy(case, "old", "source.env")
    deploy(case, "new", "target.env")
    return run_verb(
        directory,
        "verify",
        *("--from", str(directory / "source.env"), "--to", str(directory / "target.env")),
        *("--journal", str(case.directory / "journal"), "--no-brake"),
    )
