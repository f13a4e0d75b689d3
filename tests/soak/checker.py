"""Say whether a migration has lost, changed or stranded anything: exit code 0, or 1.

    python -m soak.checker --directory /var/lib/celery/soak --complete /etc/celery/target.env [--final]

reads the ledgers there, asks the deployed celeryconfig's backend for every id as any client does, and each
store of --complete by plain SQL or Redis commands: it must have everything. Nothing of the bundle is
imported. Beside a running load, what is on its way is only counted; with --final it is waited for, up to
--bound seconds.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.result import AsyncResult, GroupResult

from .judgement import (
    NOTHING,
    SAVED_GROUP,
    Answer,
    Known,
    Offence,
    judge_answers,
    judge_held,
    known,
    open_ids,
    undelivered,
)
from .ledger import brief, read
from .stores import open_store, read_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .stores import Store

SHOWN = 20
UNANSWERED = frozenset({"unanswered", "stranded"})
# A worker's second write, and the note of it, come after the client has its answer.
SETTLE_SECONDS = 15.0
POLL_SECONDS = 0.5


def ask(app: Celery, each: Known) -> Answer:
    """Ask the backend as any client does, by a new object."""
    if each.kind == SAVED_GROUP:
        restored = GroupResult.restore(each.id, app=app)
        return NOTHING if restored is None else Answer("SAVED", sorted(member.id for member in restored))
    result = AsyncResult(each.id, app=app)
    meta = app.backend.get_task_meta(result.id, cache=False)
    return Answer(meta["status"], brief(meta["result"]))


class Check:
    """One check of all that the ledgers of `directory` know."""

    def __init__(
        self, app: Celery, directory: Path, stores: list[Store], bound: float, killed: int = 0
    ) -> None:
        self._app, self._directory, self._stores, self._bound = app, directory, stores, bound
        self._killed = killed
        self.known = known(read(directory))
        self.right: set[str] = set()

    def refresh(self) -> None:
        """Read the ledgers again, for the ids that were known; what was sent since is the next check's."""
        now = known(read(self._directory))
        self.known = {each: now[each] for each in self.known}

    def answers(self, ids: Iterable[str]) -> list[Offence]:
        """Judge the backend's answers."""
        found: list[Offence] = []
        for each in (self.known[task_id] for task_id in ids):
            answer = ask(self._app, each)
            if each.fits(answer):
                self.right.add(each.id)
            found += judge_answers(each, answer, time.time(), self._bound)
        excused = self.undelivered()
        return [each for each in found if each.what not in UNANSWERED or each.id not in excused]

    def undelivered(self) -> set[str]:
        """Give what killed workers had taken from the queue, and what waits for it."""
        return undelivered(self.known, self._killed, time.time() - self._bound) - self.right

    def held(self, ids: Iterable[str]) -> list[Offence]:
        """Judge what each store holds."""
        kinds = {each: self.known[each].kind for each in ids}
        found: list[Offence] = []
        for store in self._stores:
            rows, now = read_store(store, kinds), time.time()
            for task_id in kinds:
                offences = judge_held(self.known[task_id], rows.get(task_id), now, store.expires)
                found += [Offence(f"{each.what} in {store.name}", *_rest(each)) for each in offences]
        return found

    def wait(self) -> None:
        """Wait until everything on its way has come, or is late."""
        while any(self._awaited(self.known[each]) for each in open_ids(self.known)):
            time.sleep(POLL_SECONDS)
            self.refresh()

    def _awaited(self, each: Known) -> bool:
        late = (each.queued or 0.0) + each.seconds + self._bound < time.time()
        return not late and not each.fits(ask(self._app, each))


def _rest(each: Offence) -> tuple[str, str, Any, Any]:
    return each.id, each.kind, each.expected, each.found


def settled(check: Check, judged: Callable[[Iterable[str]], list[Offence]], ids: list[str]) -> list[Offence]:
    """Judge; look again at what is wrong until it is right or has had time enough."""
    deadline = time.monotonic() + SETTLE_SECONDS
    found = judged(ids)
    # What a client was told stays told.
    while any(each.what not in ("wrong", "vanished") for each in found) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        check.refresh()
        found = judged(sorted({each.id for each in found}))
    return found


def chosen(all_known: Mapping[str, Known], sample: int) -> list[str]:
    """Choose whom to ask the backend for: all, or the newest and some others, `sample` together."""
    ids = sorted(all_known, key=lambda each: all_known[each].sent)
    if not sample or len(ids) <= sample:
        return ids
    newest = ids[-(sample // 2) :]
    return random.sample(ids[: -len(newest)], sample - len(newest)) + newest


def document(check: Check, offences: list[Offence], asked: int, at_least: int) -> dict[str, Any]:
    """Give the report."""
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for each in check.known.values():
        kinds[each.kind]["sent"] += 1
        kinds[each.kind]["acknowledged"] += each.acknowledged
        kinds[each.kind]["forgotten"] += each.gone
        kinds[each.kind]["undecided"] += each.undecided
    acknowledged = sum(counts["acknowledged"] for counts in kinds.values())
    if acknowledged < at_least:
        offences = [*offences, Offence("idle", "", "", at_least, acknowledged)]
    excused = check.undelivered()
    return {
        "ok": not offences,
        "acknowledged": acknowledged,
        "asked": asked,
        "on_their_way": len(set(open_ids(check.known)) - check.right - excused),
        "undelivered": len(excused),
        "kinds": {kind: {**counts} for kind, counts in sorted(kinds.items())},
        "offences": dict(collections.Counter(each.what for each in offences)),
        "offenders": [each.document() for each in offences[:SHOWN]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--complete", type=Path, action="append", default=[], metavar="ENV_FILE")
    parser.add_argument(
        "--bound", type=float, default=90.0, help="seconds in which each result must be there"
    )
    parser.add_argument("--sample", type=int, default=0, help="ask the backend for so many ids only")
    parser.add_argument("--killed", type=int, default=0, help="so many workers were killed meanwhile")
    parser.add_argument("--at-least", type=int, default=1, help="so many acknowledged results")
    parser.add_argument(
        "--final", action="store_true", help="the load has ended: wait for what is on its way"
    )
    arguments = parser.parse_args()
    app = Celery("checker")
    app.config_from_object("celeryconfig")
    stores = [open_store(path) for path in arguments.complete]
    check = Check(app, arguments.directory, stores, arguments.bound, arguments.killed)
    if arguments.final:
        check.wait()
    ids = chosen(check.known, arguments.sample)
    offences = settled(check, check.answers, ids) + settled(check, check.held, list(check.known))
    report = document(check, offences, len(ids), arguments.at_least)
    print(json.dumps(report, indent=1, default=str))  # noqa: T201
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
