"""Results in Redis or Valkey: found by SCAN, read and written in small scripts, each far below a millisecond.

What a login needs, beside the keys of results:
source `+scan +evalsha_ro +evalsha +script|load +get +pttl`, target `+evalsha +script|load +set`, both
`+ping +select +client|setname` and, so that a restart is noticed, `+info`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 # redis-py's own
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 # redis-py's own
)

from celery_results.backends.database.errors import Fault
from celery_results.stores.record import NO_RESULT, Batch, Document, Form, Kind, Position, Written, now_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from redis import Redis

    from celery_results.stores.copy_rows import Packer

_SCAN_COUNT: Final = 1000
# How much one script reads or writes: the server does nothing else meanwhile.
_SCRIPT_KEYS: Final = 125
_SCRIPT_BYTES: Final = 1 << 20
_READ: Final = b"""
local out, size = {}, 0
for i, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  if type(value) ~= 'string' then value = false end
  out[2 * i - 1] = value
  out[2 * i] = value and redis.call('PTTL', key) or -2
  if value then size = size + #value end
  if size > tonumber(ARGV[1]) then break end
end
return out
"""
_WRITE: Final = b"""
local out = {}
for i, key in ipairs(KEYS) do
  local ttl, done = ARGV[2 * i], nil
  if ttl == '' then done = redis.call('SET', key, ARGV[2 * i - 1], 'NX')
  else done = redis.call('SET', key, ARGV[2 * i - 1], 'NX', 'PX', ttl) end
  out[i] = done and '1' or '0'
end
return table.concat(out)
"""
# What a chord counts its parts with: gone when it is over, and of no use elsewhere.
_CHORD: Final = re.compile(rb"\.[jstdc]\Z")
_CURSOR_BITS: Final = 64
_NO_TTL: Final = -1
# What a document takes in memory beside its value.
_DOCUMENT_BYTES: Final = 300
# Without the call of a Python function that a named tuple's own constructor is.
_DOCUMENT: Final[Callable[[tuple[bytes, bytes, int | None]], Document]] = partial(tuple.__new__, Document)


class _Client:
    """One connection, for packed commands; `client` is Celery's own, so it knows Sentinel and TLS."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._connection: Any = None  # of any of redis-py's classes
        self._loaded: dict[bytes, bytes] = {}

    def connect(self) -> None:
        self.close()
        self._connection = self._client.connection_pool.get_connection()
        self._loaded.clear()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._client.connection_pool.release(self._connection)
            self._connection = None

    def identity(self) -> str:
        """Give the run id: a restarted server or another one has another."""
        try:
            found = self.ask(b"INFO", b"server")
        except NoPermissionError:
            return ""
        match = re.search(rb"run_id:(\w+)", found if isinstance(found, bytes) else str(found).encode())
        return match[1].decode() if match else ""

    def ask(self, *words: bytes) -> Any:  # noqa: ANN401 # bytes, int, None or a list of them
        return self.ask_packed(pack(words))

    def ask_packed(self, command: bytes) -> Any:  # noqa: ANN401 # as `ask`
        connection = self._connection
        if connection is None:
            raise ConnectionError("not connected")
        connection.send_packed_command([command])
        return connection.read_response(disable_decoding=True)

    def run(self, command: bytes, script: bytes, keys: int, others: int, arguments: bytes) -> Any:  # noqa: ANN401 # as `ask`
        """Call a script with keys and other arguments that are packed already."""
        words = packed([command, self.load(script), b"%d" % keys])
        return self.ask_packed(b"*%d\r\n%b%b" % (3 + keys + others, words, arguments))

    def load(self, script: bytes) -> bytes:
        """Give the digest of a script that the server knows."""
        if script not in self._loaded:
            self._loaded[script] = cast("bytes", self.ask(b"SCRIPT", b"LOAD", script))
        return self._loaded[script]


def pack(words: Sequence[bytes]) -> bytes:
    """Write a command as it goes over the wire."""
    return b"*%d\r\n%b" % (len(words), packed(words))


def packed(words: Sequence[bytes]) -> bytes:
    """Write words of a command; those of one length, as keys mostly are, by one call that runs in C."""
    lengths = set(map(len, words))
    if len(lengths) == 1:
        start = b"$%d\r\n" % lengths.pop()
        return start + (b"\r\n" + start).join(words) + b"\r\n"
    parts: list[bytes] = []
    for word in words:
        parts += (b"$%d\r\n" % len(word), word, b"\r\n")
    return b"".join(parts)


def fault(error: BaseException) -> Fault:
    """Say what an error of redis-py means."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return Fault.REFUSED
    if isinstance(error, ReadOnlyError):
        return Fault.LOST  # a former master: a new connection may lead to the present one
    # Full memory or disk, or a server that loads its data: it may pass.
    busy = isinstance(error, OutOfMemoryError | BusyLoadingError | NoScriptError) or (
        isinstance(error, ResponseError)
        and bool(re.search("OOM|MISCONF|LOADING|BUSY|MASTERDOWN", str(error)))
    )
    if busy:
        return Fault.BUSY
    if isinstance(error, ConnectionError | TimeoutError | OSError):
        return Fault.LOST
    return Fault.REFUSED if isinstance(error, RedisError) else Fault.FOREIGN


class _RedisStore:
    form: Form = "documents"

    def __init__(self, client: Redis, prefixes: dict[Kind, bytes]) -> None:
        """Take Celery's client and its two prefixes; connect to nothing yet."""
        self._client = _Client(client)
        self._prefixes = prefixes

    def connect(self) -> None:
        """Open a connection."""
        self._client.connect()

    def identity(self) -> str:
        """Give the server's run id, or "" where the login may not ask for it."""
        return self._client.identity()

    def fault(self, error: BaseException) -> Fault:
        """Say what an error means."""
        return fault(error)

    def ping(self) -> None:
        """Look one result up."""
        self._client.ask(b"GET", self._prefixes["results"] + NO_RESULT)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class RedisSource(_RedisStore):
    """Every result and saved group that is there from the first SCAN to the last; a position is its cursor.

    A key that SCAN names twice, as it may while the table grows, is read twice.
    """

    _read = b"EVALSHA_RO"

    def batches(self, position: Position | None, rows: int, size: int) -> Iterator[Batch]:
        """Walk the cursor to its end."""
        cursor = (position or {}).get("cursor", 0)
        batch = Batch({"cursor": cursor}, 0.0)
        while True:
            answer = self._client.ask(*self._scan(cursor))
            following = int(answer[0])
            for kind, named in self._named(answer[1]).items():
                keys = named
                while keys:
                    keys = keys[self._collect(kind, keys[:_SCRIPT_KEYS], batch) :]
                    if batch.size >= size:
                        # Perhaps not all that this cursor names: a resumed copy sees it again.
                        yield batch
                        batch = Batch({"cursor": cursor}, batch.fraction)
            cursor = following
            batch.position = {"cursor": cursor}
            batch.fraction = fraction(cursor) if cursor else 1.0
            if cursor == 0:
                yield batch
                return
            if batch.size >= size or len(batch.results) + len(batch.groups) >= rows:
                yield batch
                batch = Batch({"cursor": cursor}, batch.fraction)

    def _scan(self, cursor: int) -> tuple[bytes, ...]:
        common = _escaped(_common_prefix(list(self._prefixes.values()))) + b"*"
        return b"SCAN", b"%d" % cursor, b"MATCH", common, b"COUNT", b"%d" % _SCAN_COUNT

    def _named(self, keys: Sequence[bytes]) -> dict[Kind, list[bytes]]:
        task, group = self._prefixes["results"], self._prefixes["groups"]
        results = [key for key in keys if key.startswith(task)]
        if len(results) == len(keys):
            return {"results": results}
        return {
            "results": results,
            "groups": [key for key in keys if key.startswith(group) and not _CHORD.search(key)],
        }

    def _collect(self, kind: Kind, keys: Sequence[bytes], batch: Batch) -> int:
        """Read values into a batch until there is a script's worth; tell how many keys that took."""
        client = self._client
        arguments = packed(keys) + packed([b"%d" % _SCRIPT_BYTES])
        try:
            found = client.run(self._read, _READ, len(keys), 1, arguments)
        except ResponseError as error:
            # Before Redis 7 there is no EVALSHA_RO.
            if self._read == b"EVALSHA" or "unknown command" not in str(error).lower():
                raise
            self._read = b"EVALSHA"
            found = client.run(self._read, _READ, len(keys), 1, arguments)
        now = now_ms()
        start = len(self._prefixes[kind])
        values = found[::2]
        read = len(values)
        ids = [key[start:] for key in keys[:read]]
        deadlines = [None if left == _NO_TTL else now + left for left in found[1::2]]
        documents: Iterable[Document] = map(_DOCUMENT, zip(ids, values, deadlines, strict=True))
        if gone := values.count(None):
            batch.expired[kind] = batch.expired.get(kind, 0) + gone
            documents = [document for document in documents if document.value is not None]
            values = [document.value for document in documents]
        batch.of(kind).extend(documents)
        batch.size += sum(map(len, values)) + _DOCUMENT_BYTES * len(values)
        return read


class RedisTarget(_RedisStore):
    """A server that is filled by SET NX PX: what is there stays, the rest gets what remains of its life."""

    packer: Packer | None = None

    def write(self, kind: Kind, records: Sequence[Document]) -> Written:
        """Store what is absent; what has expired meanwhile is not stored."""
        done = Written()
        first = size = 0
        for place, document in enumerate(records):
            length = len(document[1])
            if place > first and (place - first >= _SCRIPT_KEYS or size + length > _SCRIPT_BYTES):
                self._store(kind, records[first:place], done)
                first, size = place, 0
            size += length
        if records:
            self._store(kind, records[first:], done)
        return done

    def _store(self, kind: Kind, documents: Sequence[Document], done: Written) -> None:
        now = now_ms()
        prefix = self._prefixes[kind]
        alive = [document for document in documents if document[2] is None or document[2] > now]
        done.expired += len(documents) - len(alive)
        if not alive:
            return
        keys = packed([prefix + identifier for identifier, _, _ in alive])
        values: list[bytes] = []
        for _, value, deadline in alive:
            left = b"" if deadline is None else b"%d" % (deadline - now)
            values += (b"$%d\r\n" % len(value), value, b"\r\n$%d\r\n%b\r\n" % (len(left), left))
        arguments = keys + b"".join(values)
        stored = self._client.run(b"EVALSHA", _WRITE, len(alive), 2 * len(alive), arguments).count(b"1")
        done.copied += stored
        done.present += len(alive) - stored


def fraction(cursor: int) -> float:
    """Tell how far a SCAN is: cursors count up with their bits reversed, whatever the size of the table."""
    return int(f"{cursor:0{_CURSOR_BITS}b}"[::-1], 2) / (1 << _CURSOR_BITS)


def _common_prefix(keys: Sequence[bytes]) -> bytes:
    first, last = min(keys), max(keys)
    length = next(
        (place for place, byte in enumerate(first) if last[place : place + 1] != bytes([byte])), None
    )
    return first if length is None else first[:length]


def _escaped(pattern: bytes) -> bytes:
    return re.sub(rb"([*?\[\]\\^])", rb"\\\1", pattern)
