"""The deployed settings, imported afresh."""

import importlib
import os
import shutil
import sys

import pytest
from tests.unit.celeryconfig_case import SOURCE


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that imports celeryconfig afresh under the given variables and nothing else."""
    for file in SOURCE.glob("*.py"):
        name = "celeryconfig.py" if file.stem == "base" else f"celeryconfig_{file.name}"
        shutil.copy(file, tmp_path / name)
    monkeypatch.syspath_prepend(tmp_path)
    for name in os.environ:
        if name.startswith("CELERY"):
            monkeypatch.delenv(name)

    def forget():
        for name in [name for name in sys.modules if name.split("_")[0] == "celeryconfig"]:
            del sys.modules[name]

    def load(*variables):
        forget()
        with monkeypatch.context() as patch:
            for name, value in {name: value for each in variables for name, value in each.items()}.items():
                if value is not None:
                    patch.setenv(f"CELERYCONFIG_{name}", value)
            return importlib.import_module("celeryconfig")

    yield load
    forget()
