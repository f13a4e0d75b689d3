"""What can go wrong, as one tree.

CeleryResultsError
├── ConfigurationError      nothing was asked of a server yet            exit code 2
│   ├── EnvFileError        an env file is missing or cannot be read
│   └── SettingsError       celeryconfig cannot be imported or is incomplete
├── UnreachableError        a server does not answer its own login       exit code 1
└── WorkerError             the worker process did not start or ended    exit code 1

A message says what was expected, what was found and what to do. None of the three ever holds a secret.
"""

from __future__ import annotations


class CeleryResultsError(Exception):
    """The root: everything that the command line prints without a traceback."""

    exit_code = 1

    def __init__(self, *, expected: str, found: str, do: str) -> None:
        """Keep the three parts apart: the command line prints them as lines, JSON as keys."""
        super().__init__(f"expected {expected}; found {found}; {do}")
        self.expected = expected
        self.found = found
        self.do = do


class ConfigurationError(CeleryResultsError):
    """The configuration cannot be used."""

    exit_code = 2


class EnvFileError(ConfigurationError):
    """An env file is missing, may not be read, or breaks its grammar."""


class SettingsError(ConfigurationError):
    """The settings module cannot be imported, or says too little."""


class UnreachableError(CeleryResultsError):
    """A server does not answer a login that should work."""


class WorkerError(CeleryResultsError):
    """The worker process did not come up, or ended before its time."""
