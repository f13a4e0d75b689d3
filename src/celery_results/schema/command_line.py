"""The command: ``schema upgrade`` and ``schema check``.

Exit codes: 0 done, or nothing to do; 1 the server did not answer or refused; 2 wrong usage; 3 the database is
of a later release; 4 a table of that name that no Celery made.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SchemaError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

EPILOG = (
    "exit codes: 0 done, or nothing to do; 1 the server did not answer or refused; 2 wrong usage; "
    "3 the database is of a later release; 4 a table of that name that no Celery made"
)


def main(arguments: Sequence[str]) -> int:
    """Run one command and give its exit code."""
    options = _parser().parse_args(arguments)
    try:
        # SQLAlchemy and Alembic take a while to import: not for --help.
        from .upgrade import Options, run  # noqa: PLC0415

        result = run(
            Options(
                url=_url(options),
                owner=options.owner,
                lock_seconds=options.lock_timeout,
                wait_seconds=options.wait,
                rewrite_bytes=options.rewrite_limit * 1024 * 1024,
            ),
            change=options.command == "upgrade",
        )
    except SchemaError as error:
        _print_error(error, as_json=options.json)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: run it again, it goes on from where it is\n")
        return 130
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        _print(result, options.command)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="schema", description=__doc__.splitlines()[0], epilog=EPILOG)
    parser.add_argument("command", choices=["upgrade", "check"], help="check says what upgrade would do")
    url = parser.add_mutually_exclusive_group(required=True)
    url.add_argument("--url", help="SQLAlchemy's URL; without a password, others see it in the process list")
    url.add_argument("--url-file", type=Path, metavar="FILE", help="a file that holds the URL alone")
    parser.add_argument("--owner", metavar="ROLE", help="PostgreSQL: the role that tables are to belong to")
    parser.add_argument(
        "--lock-timeout",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long one statement waits for its lock, and others behind it, before it steps back (5)",
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long to try again, and to wait for another upgrade to end (600)",
    )
    parser.add_argument(
        "--rewrite-limit",
        type=int,
        choices=range(1_000_001),
        default=128,
        metavar="MEGABYTES",
        help="PostgreSQL: a table up to this size gets BIGINT ids by a rewrite, a larger one online (128)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:  # noqa: PLR2004 - a day, in seconds
        raise argparse.ArgumentTypeError("more than 0, at most 86400")
    return value


def _url(options: argparse.Namespace) -> str:
    if options.url_file is None:
        return str(options.url)
    try:
        return str(options.url_file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            expected=f"a URL in the file {options.url_file}",
            found=type(error).__name__,
            do="check the name and the mode of the file",
        ) from None


def _print(result: dict[str, Any], command: str) -> None:
    verb = "would be done" if command == "check" else "done"
    for step in result["steps"]:
        sys.stdout.write(f"{verb}: {step}\n")
    sys.stdout.write(f"revision {result['from'] or 'none'} -> {result['to']}\n")


def _print_error(error: SchemaError, *, as_json: bool) -> None:
    parts = {"expected": error.expected, "found": error.found, "do": error.do}
    if as_json:
        sys.stdout.write(json.dumps({"changed": False, "error": parts}) + "\n")
    else:
        sys.stderr.write(
            "error: " + "\n       ".join(f"{key:<8} {text}" for key, text in parts.items()) + "\n"
        )
