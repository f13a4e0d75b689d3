"""What a client does with results: every use of a result backend, with ids and answers known before."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group
from celery.exceptions import TimeoutError as NoAnswerError
from celery.result import AsyncResult, GroupResult

from . import soak_tasks as tasks
from .ledger import brief, lines, note

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANSWER_SECONDS = 180.0
SENDING_SECONDS = 30.0
# How often each operation is chosen, in relation to the others.
WEIGHTS = {
    "value": 30,
    "large": 2,
    "failing": 6,
    "retrying": 5,
    "stepping": 4,
    "reporting": 4,
    "group": 6,
    "saved_group": 4,
    "deleted_group": 2,
    "chord": 9,
    "slow_chord": 2,
    "broken_chord": 3,
    "inner_chord": 3,
    "chain": 6,
    "group_in_chain": 3,
    "forgotten": 9,
    "ignored": 2,
}


class Clients:
    """The operations, for any number of threads; `directory` is where the ledger is."""

    def __init__(self, directory: Path, rate: float, slow: float) -> None:
        self.ledger = directory / "client.jsonl"
        self.rate = rate
        self.slow = slow
        self._answered: deque[str] = deque(maxlen=5000)
        self._stopping = threading.Event()
        self._sending = 0
        self._sent = threading.Condition()

    def operate(self, chance: random.Random, threads: int) -> None:
        """Do one operation after the other, at this thread's share of the rate."""
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        while not self._stopping.is_set():
            began = time.monotonic()
            name = chance.choices(names, weights)[0]
            with self._errors(name):
                getattr(self, f"_do_{name}")(chance)
            self._stopping.wait(max(0.0, threads / self.rate - (time.monotonic() - began)))

    def reread(self) -> None:
        """Ask again for what was answered before, by a new object each time."""
        chance = random.Random()  # noqa: S311
        while not self._stopping.wait(0.5 / self.rate):
            if not self._answered:
                continue
            task_id = chance.choice(self._answered)
            with self._errors("reread", id=task_id):
                meta = tasks.app.backend.get_task_meta(task_id, cache=False)
                self._note("reread", id=task_id, state=meta["status"], value=brief(meta["result"]))

    def adopt(self) -> None:
        """Take over what the clients before have sent and not been answered."""
        waiting: dict[str, None] = {}
        answered: dict[str, None] = {}
        for line in lines(self.ledger) if self.ledger.exists() else ():
            if line["event"] == "queued" and line.get("wait"):
                waiting[line["id"]] = None
            elif line["event"] in ("got", "forgetting", "timeout"):
                waiting.pop(line["id"], None)
            if line["event"] == "got":
                answered[line["id"]] = None
            elif line["event"] == "forgetting":
                answered.pop(line["id"], None)
        self._answered.extend(answered)
        for task_id in waiting:
            with self._errors("adopted", id=task_id):
                self._get(AsyncResult(task_id))

    def finish_sending(self) -> None:
        """Begin nothing more, and wait until what is being sent has been."""
        self._stopping.set()
        with self._sent:
            self._sent.wait_for(lambda: self._sending == 0, SENDING_SECONDS)

    # Notes

    def _note(self, event: str, **fields: Any) -> None:  # JSON
        note(self.ledger, event, durable=event in ("sent", "got", "forgetting", "forgot", "saved"), **fields)

    @contextmanager
    def _errors(self, during: str, **fields: Any) -> Iterator[None]:  # JSON
        """Note what a store or the broker refused, and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 # whatever a driver raises
            self._note("failed", during=during, error=f"{type(error).__name__}: {error}"[:300], **fields)

    @contextmanager
    def _send(self, *expected: dict[str, Any]) -> Iterator[None]:
        """Note what comes, send it, and note that it is on its way; a stop waits for it."""
        with self._sent:
            if self._stopping.is_set():
                raise SystemExit
            self._sending += 1
        try:
            for fields in expected:
                self._note("sent", **{name: value for name, value in fields.items() if name != "wait"})
            yield
            for fields in expected:
                self._note("queued", id=fields["id"], wait=fields.get("wait", False))
        finally:
            with self._sent:
                self._sending -= 1
                self._sent.notify_all()

    def _get(self, result: Any, *, keep: bool = True) -> None:  # Celery has no types
        try:
            value = result.get(timeout=ANSWER_SECONDS, propagate=False)
        except NoAnswerError:
            self._note("timeout", id=result.id, during="get")
            return
        self._note("got", id=result.id, state=result.state, value=brief(value))
        if keep:
            self._answered.append(result.id)

    def _single(self, kind: str, task: Any, arguments: tuple[Any, ...], value: Any, **more: Any) -> Any:
        """Send one task and give its result."""
        task_id = str(uuid.uuid4())
        fields = {
            "id": task_id,
            "kind": kind,
            "state": "SUCCESS",
            "value": brief(value),
            "wait": True,
            **more,
        }
        with self._send(fields):
            return task.apply_async(arguments, task_id=task_id)

    # Operations

    def _do_value(self, chance: random.Random) -> None:
        value = {"number": chance.randrange(10**9), "text": f"ä€ {chance.random()}", "null": None}
        self._get(self._single("value", tasks.echo, (value,), value))

    def _do_large(self, chance: random.Random) -> None:
        token = f"{chance.random():.16f}"
        self._get(self._single("large", tasks.large, (token, 4000), token * 4000))

    def _do_failing(self, chance: random.Random) -> None:
        token = str(chance.random())
        value = ValueError("on purpose", token)
        self._get(self._single("failing", tasks.failing, (token,), value, state="FAILURE"))

    def _do_retrying(self, chance: random.Random) -> None:
        token, times = str(chance.random()), chance.randrange(1, 3)
        self._get(self._single("retrying", tasks.retrying, (token, times), [token, times]))

    def _do_stepping(self, chance: random.Random) -> None:
        token = str(chance.random())
        self._get(self._single("stepping", tasks.stepping, (token,), token))

    def _do_reporting(self, chance: random.Random) -> None:
        token = str(chance.random())
        self._single("reporting", tasks.reporting, (token,), {"token": token}, state="REPORTED", wait=False)

    def _do_ignored(self, chance: random.Random) -> None:
        self._single("ignored", tasks.ignored, (chance.randrange(9),), None, state="PENDING", wait=False)

    def _do_forgotten(self, chance: random.Random) -> None:
        value = chance.randrange(10**9)
        result = self._single("forgotten", tasks.echo, (value,), value)
        self._get(result, keep=False)
        self._note("forgetting", id=result.id)
        result.forget()
        self._note("forgot", id=result.id)

    def _do_chain(self, chance: random.Random) -> None:
        first, one, two = (chance.randrange(1000) for _ in range(3))
        values = [first + 1, first + 1 + one, first + 1 + one + two]
        links = [expected("chain", value) for value in values]
        links[-1]["wait"] = True
        ids = [link["id"] for link in links]
        for link, before in zip(links[1:], ids, strict=False):
            link["needs"] = [before]
        steps = [tasks.add.s(first, 1), tasks.add.s(one), tasks.add.s(two)]
        with self._send(*links):
            result = chain(
                step.set(task_id=task_id) for step, task_id in zip(steps, ids, strict=True)
            ).apply_async()
        self._get(result)

    def _do_group_in_chain(self, chance: random.Random) -> None:
        numbers = [chance.randrange(1000) for _ in range(3)]
        parts = [expected("chord part", 2 * number) for number in numbers]
        body = expected("chord", 2 * sum(numbers), needs=ids_of(parts))
        last = expected("chord", 2 * sum(numbers) + 5, wait=True, needs=[body["id"]])
        header = group(
            tasks.add.s(n, n).set(task_id=part["id"]) for n, part in zip(numbers, parts, strict=True)
        )
        with self._send(*parts, body, last):
            result = chain(
                header,
                tasks.total.s().set(task_id=body["id"]),
                tasks.add.s(5).set(task_id=last["id"]),
            ).apply_async()
        self._get(result)

    def _group(self, chance: random.Random) -> GroupResult:
        numbers = [chance.randrange(1000) for _ in range(4)]
        members = [expected("group", 2 * number, wait=True) for number in numbers]
        with self._send(*members):
            return group(
                tasks.add.s(n, n).set(task_id=member["id"])
                for n, member in zip(numbers, members, strict=True)
            ).apply_async()

    def _do_group(self, chance: random.Random) -> None:
        result = self._group(chance)
        values = result.get(timeout=ANSWER_SECONDS)
        for member, value in zip(result, values, strict=True):
            self._note("got", id=member.id, state="SUCCESS", value=value)
            self._answered.append(member.id)

    def _do_saved_group(self, chance: random.Random) -> None:
        result = self._group(chance)
        self._save(result)
        restored = GroupResult.restore(result.id, app=tasks.app)
        if restored is None:
            self._note("reread", id=result.id, state="PENDING", value=None)
        for member in result:
            self._get(member)

    def _do_deleted_group(self, chance: random.Random) -> None:
        result = self._group(chance)
        self._save(result)
        self._note("forgetting", id=result.id)
        result.delete()
        self._note("forgot", id=result.id)
        for member in result:
            self._get(member)

    def _save(self, result: GroupResult) -> None:
        members = sorted(member.id for member in result)
        self._note("sent", id=result.id, kind="saved group", state="SAVED", value=members)
        result.save()
        self._note("saved", id=result.id)

    def _chord(self, header: list[Any], parts: list[dict[str, Any]], body: dict[str, Any]) -> None:
        body["needs"] = ids_of(parts)
        signatures = [sig.set(task_id=part["id"]) for sig, part in zip(header, parts, strict=True)]
        with self._send(*parts, body):
            result = chord(signatures, tasks.total.s()).apply_async(task_id=body["id"])
        self._get(result)

    def _do_chord(self, chance: random.Random) -> None:
        numbers = [chance.randrange(1000) for _ in range(5)]
        header = [tasks.add.s(number, number) for number in numbers]
        parts = [expected("chord part", 2 * number) for number in numbers]
        self._chord(header, parts, expected("chord", 2 * sum(numbers), wait=True))

    def _do_slow_chord(self, chance: random.Random) -> None:
        """Be in flight for long enough to meet a restart."""
        numbers = [chance.randrange(1000) for _ in range(3)]
        seconds = chance.uniform(self.slow / 4, self.slow)
        header = [tasks.slow.s(seconds if number == numbers[0] else 0.1, number) for number in numbers]
        parts = [expected("chord part", number, seconds=seconds) for number in numbers]
        self._chord(header, parts, expected("chord", sum(numbers), wait=True, seconds=seconds))

    def _do_broken_chord(self, chance: random.Random) -> None:
        token = str(chance.random())
        parts = [
            expected("chord part", 4),
            {**expected("chord part", ValueError("on purpose", token)), "state": "FAILURE"},
        ]
        # ChordError or, now and then, the part's own error: a race of Celery's with any backend.
        body = {**expected("broken chord", None, wait=True), "state": "FAILURE"}
        del body["value"]
        self._chord([tasks.add.s(2, 2), tasks.failing.s(token)], parts, body)

    def _do_inner_chord(self, chance: random.Random) -> None:
        numbers = [chance.randrange(1000) for _ in range(3)]
        parts = [expected("chord part", 2 * number) for number in numbers]
        body = expected("chord", 2 * sum(numbers), wait=True, needs=ids_of(parts))
        outer = expected("value", body["id"], wait=True)
        for part in parts:
            part["needs"] = [outer["id"]]
        given = (numbers, ids_of(parts), body["id"])
        with self._send(*parts, body, outer):
            result = tasks.starting.apply_async(given, task_id=outer["id"])
        self._get(result)
        self._get(AsyncResult(body["id"]))


def expected(kind: str, value: Any, **more: Any) -> dict[str, Any]:  # whatever a task returns
    return {"id": str(uuid.uuid4()), "kind": kind, "state": "SUCCESS", "value": brief(value), **more}


def ids_of(documents: list[dict[str, Any]]) -> list[str]:
    return [each["id"] for each in documents]
