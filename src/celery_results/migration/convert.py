"""From the form and serializer of the source to those of the target; where both agree, nothing is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from celery.backends.base import decompress_payload
from kombu.serialization import dumps, loads, registry

from celery_results.migration import compose, document
from celery_results.migration.cut import Cutter
from celery_results.migration.document import MalformedError
from celery_results.migration.lossy import Lossy
from celery_results.stores.record import (
    DOCUMENT,
    GROUP_COLUMNS,
    PAYLOADS,
    TASK_COLUMNS,
    TASK_DATE,
    Document,
    Failure,
    Form,
    Kind,
    Row,
    Shape,
    now_ms,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_results.stores.copy_rows import Packer
    from celery_results.stores.record import PackedRow

# Between a task's end and the write of its result: no other expiry is meant by a difference below it.
_TOLERANCE: Final = 5_000_000
_COMPRESSED: Final = b"\x00"
# Rows whose payloads are looked at together: more of what they hold, decoded, would leave the cache.
_TOGETHER: Final = 32
_PAYLOAD_PLACES: Final[dict[Kind, tuple[int, ...]]] = {
    "results": tuple(TASK_COLUMNS.index(name) for name in PAYLOADS),
    "groups": (GROUP_COLUMNS.index("result"),),
}


class Serializer:
    """One of kombu's, for payloads that must be read and written anew."""

    def __init__(self, name: str) -> None:
        """Take the name of result_serializer, registered in this process."""
        self.name = name
        self.content_type, self.content_encoding, _ = registry._encoders[name]  # noqa: SLF001 - as Celery does

    def decode(self, payload: bytes) -> Any:  # noqa: ANN401 - any result
        """Read a payload; raises MalformedError. Nothing but this serializer is accepted."""
        try:
            return loads(payload, self.content_type, self.content_encoding, accept=[self.content_type])  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - whatever the serializer raises
            raise MalformedError(f"not readable as {self.name}: {type(error).__name__}") from None

    def encode(self, value: object) -> bytes:
        """Write a payload; raises MalformedError where the serializer has no form for the value."""
        try:
            payload = dumps(value, serializer=self.name)[2]  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - whatever the serializer raises
            raise MalformedError(f"not writable as {self.name}: {type(error).__name__}") from None
        return payload.encode() if isinstance(payload, str) else bytes(payload)


class Converter:
    """Turns what a source gives into what its target takes; counts what is lost on the way."""

    def __init__(self, source: Shape, target: Shape, packer: Packer | None = None) -> None:
        """Choose the way; raises KeyError for a serializer that is not registered.

        With the packer of a target that takes packed rows, results in JSON may become such.
        """
        self.source = source
        self.target = target
        self.lossy = Lossy()  # of what was converted since it was last taken
        same = source.serializer == target.serializer
        json_only = same and source.serializer == "json"
        self._reader, self._writer = Serializer(source.serializer), Serializer(target.serializer)
        ways: dict[tuple[Form, Form], dict[Kind, Callable[[Any], Any]]] = {
            ("documents", "documents"): dict.fromkeys(("results", "groups"), self._document_anew),
            # Results in JSON go another way: see `convert`.
            ("documents", "rows"): {"results": self._row_of_task, "groups": self._row_of_group},
            ("rows", "documents"): {"results": self._document_of_task, "groups": self._document_of_group},
            ("rows", "rows"): {
                "results": lambda row: self._row_anew("results", row),
                "groups": lambda row: self._row_anew("groups", row),
            },
        }
        self._ways = ways[source.form, target.form]
        self._verbatim = same and source.form == target.form
        self._raw = json_only
        self._cut = target.form == "rows" and not target.keeps_microseconds
        if self._cut and self._verbatim:
            self._verbatim = False
        self._same = same
        self._life = int((target.expires or 0) * 1_000_000)
        self._apart, self._together = document.Reader(), compose.Writer()
        self._packer = None if self._cut else packer
        if packer is not None:
            self._cutter = Cutter(self._apart, packer)

    def convert(self, kind: Kind, records: list[Any]) -> tuple[list[Any], list[Failure]]:
        """Give the records for the target, and those that cannot be."""
        if self._verbatim:
            return records, []
        if self._raw and kind == "results" and self.source.form == "documents":
            return self._rows_of_tasks(records)
        if self._raw and kind == "results" and self.target.form == "documents":
            return self._documents_of_tasks(records)
        way = self._ways[kind]
        done: list[Any] = []
        failures: list[Failure] = []
        for record in records:
            try:
                done.append(way(record))
            except MalformedError as error:
                failures.append(Failure(kind, text(record[0]), str(error)))
        return (self._cut_times(done) if kind == "results" else done), failures

    def take_lossy(self) -> Lossy:
        """Give what was lost since the last call."""
        taken, self.lossy = self.lossy, Lossy()
        return taken

    # ---- documents to rows

    def _rows_of_tasks(self, records: list[Document]) -> tuple[list[Any], list[Failure]]:
        """Do the most frequent work in one loop, packed where the target takes packed rows."""
        rows: list[Any] = []
        failures: list[Failure] = []
        if self._packer is not None:
            pack = self._packer.row

            def packed(record: Document) -> PackedRow | None:
                row = self._row_of_json(record, failures)
                return None if row is None else pack(row)

            rows, never, odd = self._cutter.rows(records, self._life, _TOLERANCE, packed)
            if self.target.expires is not None:
                self.lossy["never_expires"] += never
            self.lossy["expiry"] += odd
            return rows, failures
        for record in records:
            row = self._row_of_json(record, failures)
            if row is not None:
                rows.append(row)
        return self._cut_times(rows), failures

    def _row_of_json(self, record: Document, failures: list[Failure]) -> Row | None:
        identifier, value, deadline = record
        try:
            plain = _plain(value) if value[:1] == _COMPRESSED else value
            row = self._apart.task_row(identifier, plain, self.lossy)
        except MalformedError as error:
            failures.append(Failure("results", text(identifier), str(error)))
            return None
        date = row[TASK_DATE]
        if deadline is None or date is None or abs(deadline * 1000 - date - self._life) > _TOLERANCE:
            self._count_expiry(deadline, date)
        return row

    def _row_of_task(self, record: Document) -> Row:
        row = self._row_of_decoded(record.id, _plain(record.value))
        self._count_expiry(record.deadline, row[TASK_DATE])
        return row

    def _row_of_decoded(self, identifier: bytes, payload: bytes) -> Row:
        meta = self._reader.decode(payload)
        if not isinstance(meta, dict):
            raise MalformedError("no record of Celery's")
        encode = self._writer.encode

        def raw(name: str) -> bytes | None:
            return None if meta.get(name) is None else encode(meta[name])

        stamps = None
        if meta.get("stamped_headers"):
            headers = meta["stamped_headers"]
            kept = {header: meta[header] for header in headers if header in meta}
            stamps = encode({"stamped_headers": headers, "stamps": kept})
        result = encode(meta.get("result"))
        return document.columns_of(meta, identifier, self.lossy, result=result, stamps=stamps, raw=raw)

    def _row_of_group(self, record: Document) -> Row:
        payload = _plain(record.value)
        # A group in a table expires by its age, so it gets the age that leaves it what it had left.
        expires = self.target.expires
        moment = now_ms()
        if record.deadline is None:
            self.lossy["never_expires"] += expires is not None
        elif expires is not None:
            moment = record.deadline - int(expires * 1000)
        if self._raw:
            return document.group_row(record.id, payload, moment * 1000)
        meta = self._reader.decode(payload)
        if not isinstance(meta, dict) or "result" not in meta:
            raise MalformedError("no saved group of Celery's")
        return record.id, self._writer.encode(meta["result"]), moment * 1000

    def _count_expiry(self, deadline: int | None, date: int | None) -> None:
        """Count what will live for longer or shorter than its key would have."""
        expires = self.target.expires is not None
        if deadline is None:
            self.lossy["never_expires"] += expires
        elif date is not None and not (expires and abs(deadline * 1000 - date - self._life) <= _TOLERANCE):
            self.lossy["expiry"] += 1

    # ---- rows to documents

    def _documents_of_tasks(self, rows: list[Row]) -> tuple[list[Document], list[Failure]]:
        """Do the most frequent work some rows at a time."""
        done: list[Document] = []
        failures: list[Failure] = []
        expires = self.source.expires
        life = None if expires is None else int(expires * 1000)
        for first in range(0, len(rows), _TOGETHER):
            part = rows[first : first + _TOGETHER]
            try:
                values = list(self._together.task_documents(part))
            except MalformedError:
                part, values = self._one_by_one(part, failures)
            whole = None if life is None else now_ms() + life
            dates = (row[TASK_DATE] for row in part)
            deadlines = [whole if life is None or date is None else date // 1000 + life for date in dates]
            done.extend(map(DOCUMENT, zip([row[0] for row in part], values, deadlines, strict=True)))
        return done, failures

    def _one_by_one(self, rows: list[Row], failures: list[Failure]) -> tuple[list[Row], list[bytes]]:
        good: list[Row] = []
        values: list[bytes] = []
        for row in rows:
            try:
                values.append(self._together.task_document(row))
            except MalformedError as error:
                failures.append(Failure("results", text(row[0]), str(error)))
            else:
                good.append(row)
        return good, values

    def _document_of_task(self, row: Row) -> Document:
        return Document(row[0], self._writer.encode(self._meta(row)), self._deadline(row[TASK_DATE]))

    def _meta(self, row: Row) -> dict[str, Any]:
        decode = self._reader.decode
        fields: dict[str, Any] = dict(zip(TASK_COLUMNS, row, strict=True))
        for name in ("status", "traceback", "name", "worker", "queue", "task_id"):
            fields[name] = None if fields[name] is None else fields[name].decode(errors="replace")
        for name in PAYLOADS:
            fields[name] = None if fields[name] is None else decode(fields[name])
        date = fields["date_done"]
        fields["date_done"] = None if date is None else document.iso(date).decode()
        stamps = fields.pop("stamps")
        if isinstance(stamps, dict):
            fields["stamped_headers"] = stamps.get("stamped_headers")
            fields.update(stamps.get("stamps") or {})
        return fields

    def _document_of_group(self, row: Row) -> Document:
        if self._raw:
            value = compose.group_document(row)
        else:
            result = None if row[1] is None else self._reader.decode(row[1])
            value = self._writer.encode({"result": result})
        return Document(row[0], value, self._deadline(row[2]))

    def _deadline(self, date: int | None) -> int | None:
        """Give when the source would drop it; an unfinished result has its whole life before it."""
        expires = self.source.expires
        if expires is None:
            return None
        return (now_ms() if date is None else date // 1000) + int(expires * 1000)

    # ---- the same form, other bytes

    def _document_anew(self, record: Document) -> Document:
        payload = self._writer.encode(self._reader.decode(_plain(record.value)))
        return record._replace(value=payload)

    def _row_anew(self, kind: Kind, row: Row) -> Row:
        if self._same:
            return row
        values = list(row)
        for place in _PAYLOAD_PLACES[kind]:
            if values[place] is not None:
                values[place] = self._writer.encode(self._reader.decode(values[place]))
        return tuple(values)

    def _cut_times(self, rows: list[Row]) -> list[Row]:
        """Cut what the target's column cuts, here and not there: some servers round."""
        if not self._cut:
            return rows
        cut: list[Row] = []
        for row in rows:
            date = row[TASK_DATE]
            if date is not None and date % 1_000_000:
                self.lossy["date_done"] += 1
                cut.append((*row[:TASK_DATE], date - date % 1_000_000, *row[TASK_DATE + 1 :]))
            else:
                cut.append(row)
        return cut


def _plain(payload: bytes) -> bytes:
    """Undo result_compression; raises MalformedError."""
    if payload[:1] != _COMPRESSED:
        return payload
    try:
        plain = decompress_payload(payload)
    except Exception as error:  # noqa: BLE001 - whatever the method raises
        raise MalformedError(f"not decompressed: {type(error).__name__}") from None
    return plain if isinstance(plain, bytes) else str(plain).encode()
