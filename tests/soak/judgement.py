"""What may be said of a migration from the ledgers, the backend's answers and what the stores hold.

Pure: nothing here asks anybody. `known` makes of the ledgers' lines what must be, `judge` compares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

READY: Final = frozenset({"SUCCESS", "FAILURE", "REVOKED", "REPORTED"})
SAVED_GROUP: Final = "saved group"
CHORDS: Final = frozenset({"chord", "broken chord"})
# Between the clock of a worker's notes and that of a store, and between the two writes of one result.
SLACK_SECONDS: Final = 12.0
_ANY: Final = object()


@dataclass(frozen=True)
class Offence:
    """What is wrong with one id: `found` instead of `expected`."""

    what: str
    id: str
    kind: str
    expected: Any
    found: Any

    def document(self) -> dict[str, Any]:
        return {**self.__dict__}


@dataclass(frozen=True)
class Answer:
    """What a reader says of one id: its state and brief value; of a saved group its members, or None."""

    state: str
    value: Any


@dataclass(frozen=True)
class Held(Answer):
    """What one store holds, read without Celery: when the task ended and how long the key will live."""

    ended: float | None = None
    lives_seconds: float | None = None


NOTHING: Final = Answer("PENDING", None)


@dataclass
class Known:
    """What the ledgers say of one id; times are seconds of the epoch."""

    id: str
    kind: str
    state: str
    sent: float
    value: Any = _ANY
    seconds: float = 0.0
    needs: tuple[str, ...] = ()
    queued: float | None = None
    saved: float | None = None
    got: list[tuple[float, Answer]] = field(default_factory=list)
    reread: list[Answer] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)
    stored: list[tuple[float, float, Answer]] = field(default_factory=list)
    forgetting: float | None = None
    forgot: float | None = None

    @property
    def acknowledged(self) -> bool:
        """Say whether somebody was told that the result is there: a client, or the worker that stored it."""
        return bool(self.got or self.stored or self.saved)

    @property
    def gone(self) -> bool:
        """Say whether it was forgotten, by a client that was told so, and no run can have stored it again."""
        return self.forgot is not None and len(self.runs) <= 1

    @property
    def undecided(self) -> bool:
        """Say whether both are right: forget() did not return, or a killed worker's task ran again."""
        return self.forgetting is not None and not self.gone

    def fits(self, answer: Answer) -> bool:
        if answer.state != self.state:
            return False
        return self.value is _ANY or answer.value == self.value

    def ended(self) -> tuple[float, float]:
        """Give the bounds of the time that its end may carry.

        A worker that was killed may have stored it and not said so.
        """
        if self.stored:
            began = [*self.runs, *(began for began, _, _ in self.stored)]
            return min(began), max(at for _, at, _ in self.stored)
        return self.sent, min((at for at, _ in self.got), default=float("inf"))


def known(lines: Iterable[Mapping[str, Any]]) -> dict[str, Known]:
    """Sum up the ledgers by id; a worker's notes of ids that no client sent are left out."""
    all_lines = list(lines)
    found: dict[str, Known] = {}
    for line in all_lines:
        if line["event"] == "sent":
            each = Known(line["id"], line["kind"], line["state"], line["at"], line.get("value", _ANY))
            each.seconds = float(line.get("seconds", 0.0))
            each.needs = tuple(line.get("needs", ()))
            found[line["id"]] = each
    for line in all_lines:
        if line.get("id") in found:
            _take(found[line["id"]], line)
    return found


def _take(each: Known, line: Mapping[str, Any]) -> None:
    at = float(line["at"])
    match line["event"]:
        case "queued" | "saved" | "forgetting" | "forgot" as event:
            setattr(each, event, at)
        case "got":
            each.got.append((at, Answer(line["state"], line["value"])))
        case "reread":
            each.reread.append(Answer(line["state"], line["value"]))
        case "began":
            each.runs.append(at)
        case "stored":
            each.stored.append((float(line["began"]), at, Answer(line["state"], line["value"])))


def judge_answers(each: Known, answer: Answer, now: float, bound: float) -> list[Offence]:
    """Judge what clients were told and what the backend says now, `bound` seconds after it was queued."""
    told = [got for _, got in each.got]
    wrong = [("wrong", got) for got in told if not each.fits(got)]
    # A client that reads again may be late only where somebody forgets.
    if each.forgetting is None:
        wrong += [
            ("vanished" if got.state not in READY else "wrong", got)
            for got in each.reread
            if not each.fits(got)
        ]
    offences = [Offence(what, each.id, each.kind, _wanted(each), _shown(got)) for what, got in wrong]
    verdict = _verdict(each, answer, now, bound)
    if verdict:
        offences.append(Offence(verdict, each.id, each.kind, _wanted(each), _shown(answer)))
    return offences


def _verdict(each: Known, answer: Answer, now: float, bound: float) -> str | None:  # noqa: PLR0911 # a table
    if each.undecided:
        return None if answer.state not in READY or each.fits(answer) else "wrong"
    if each.gone:
        return "risen" if answer != NOTHING else None
    if each.fits(answer):
        return None
    if (answer.state in READY and each.state != answer.state) or answer.state == each.state:
        return "wrong"
    if each.acknowledged:
        return "lost"
    if each.queued is not None and now - each.queued > bound + each.seconds:
        return "stranded" if each.kind in CHORDS else "unanswered"
    return None


def judge_held(each: Known, held: Held | None, now: float, expires: float) -> list[Offence]:
    """Judge what a store holds that must have every acknowledged result; `held` is None where it has none."""
    if each.undecided or each.state == "PENDING" or not (each.acknowledged or each.gone):
        return []
    if each.gone:
        return [] if held is None else [Offence("risen", each.id, each.kind, None, _shown(held))]
    if held is None:
        return [Offence("missing", each.id, each.kind, _wanted(each), None)]
    if not each.fits(held):
        return [Offence("different", each.id, each.kind, _wanted(each), _shown(held))]
    return _shifted(each, held, now, expires)


def _shifted(each: Known, held: Held, now: float, expires: float) -> list[Offence]:
    """Judge the times: when it ended, and, where the store says so, how long it will be kept."""
    if each.state not in READY - {"REPORTED"}:
        return []
    first, last = each.ended()
    times = {"ended": held.ended}
    if held.lives_seconds is not None:
        times["stored as its life says"] = now + held.lives_seconds - expires
    return [
        Offence("shifted", each.id, each.kind, [first, last], {name: time})
        for name, time in times.items()
        if time is None or not first - SLACK_SECONDS <= time <= last + SLACK_SECONDS
    ]


def open_ids(all_known: Mapping[str, Known]) -> list[str]:
    """Give the ids that are on their way: queued, and nobody was answered."""
    return [
        each.id
        for each in all_known.values()
        if each.queued is not None and not each.acknowledged and each.state in READY
    ]


def undelivered(all_known: Mapping[str, Known], killed: int, late: float) -> set[str]:
    """Give the ids that no worker has begun, through no fault of a result backend, where workers were killed.

    kombu's Redis transport notes a message as unacknowledged only after BRPOP has taken it from the queue:
    who is killed between the two loses it. So each of the `killed` workers may have lost one that a client
    had sent (before `late`), with all that waits for it. Where there are more, none is excused.
    """
    open_now = {each: all_known[each] for each in open_ids(all_known) if not all_known[each].runs}
    lost = {each.id for each in open_now.values() if not each.needs and (each.queued or late) < late}
    if len(lost) > killed:
        return set()
    while more := {each.id for each in open_now.values() if lost.intersection(each.needs)} - lost:
        lost |= more
    return lost


def _wanted(each: Known) -> Any:  # JSON
    return [each.state, None if each.value is _ANY else each.value]


def _shown(answer: Answer) -> Any:  # JSON
    return [answer.state, answer.value]
