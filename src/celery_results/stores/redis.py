"""Results in Redis or Valkey: found by SCAN, read and written in small scripts, each far below a millisecond.

What a login needs, beside the keys of results:
source `+scan +evalsha_ro +evalsha +script|load +get +pttl`, target `+evalsha +script|load +set`, both
`+ping +select +client|setname` and, so that a restart is noticed, `+info`.
"""

from __future__ import annotations

import re
from collections import deque
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
from celery_results.stores.record import (
    DOCUMENT,
    NO_RESULT,
    Batch,
    Document,
    Form,
    Kind,
    Position,
    Written,
    now_ms,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from redis import Redis

    from celery_results.stores.copy_rows import Packer

_SCAN_COUNT: Final = 1000
# How much one script reads or writes: the server does nothing else meanwhile.
_SCRIPT_KEYS: Final = 125
_SCRIPT_BYTES: Final = 1 << 20
# Scripts under way at most: the server works meanwhile, and others get their turn between two of them. What
# is read must be held when it comes; of what is written only few bytes come back.
_READS: Final = 2
_WRITES: Final = 8
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

    def send(self, command: bytes) -> None:
        """Send a packed command; its answer comes in its turn."""
        if self._connection is None:
            raise ConnectionError("not connected")
        self._connection.send_packed_command([command])

    def answer(self) -> Any:  # noqa: ANN401 # bytes, int, None or a list of them
        """Read the next answer; raises what it says."""
        return self._connection.read_response(disable_decoding=True)

    def ask(self, *words: bytes) -> Any:  # noqa: ANN401 # as `answer`
        self.send(pack(words))
        return self.answer()

    def call(self, command: bytes, script: bytes, keys: int, others: int, packed_words: list[bytes]) -> None:
        """Send a call of a script with keys and other arguments that are packed already."""
        words = packed([command, self._loaded[script], b"%d" % keys])
        self.send(b"".join((b"*%d\r\n" % (3 + keys + others), words, *packed_words)))

    def load(self, script: bytes) -> bool:
        """Have the server know a script; tell whether it is the first time on this connection."""
        if script in self._loaded:
            return False
        self._loaded[script] = cast("bytes", self.ask(b"SCRIPT", b"LOAD", script))
        return True


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


_READ_LIMIT: Final = packed([b"%d" % _SCRIPT_BYTES])


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

    _script = b"EVALSHA_RO"

    def batches(self, position: Position | None, rows: int, size: int) -> Iterator[Batch]:
        """Walk the cursor to its end; who leaves before that connects anew, for answers are on their way."""
        self._prepare()
        cursor = (position or {}).get("cursor", 0)
        batch = Batch({"cursor": cursor}, 0.0)
        self._client.send(self._scan(cursor))
        while True:
            answer = self._client.answer()
            cursor = int(answer[0])
            following = self._scan(cursor) if cursor else b""
            batch = yield from self._values(self._named(answer[1]), batch, size, following)
            batch.position = {"cursor": cursor}
            batch.fraction = fraction(cursor) if cursor else 1.0
            if cursor == 0:
                yield batch
                return
            if batch.size >= size or len(batch.results) + len(batch.groups) >= rows:
                yield batch
                batch = Batch({"cursor": cursor}, batch.fraction)

    def _values(
        self, keys: list[tuple[Kind, list[bytes]]], batch: Batch, size: int, following: bytes
    ) -> Generator[Batch, None, Batch]:
        """Read what a SCAN has named, send the `following` one; give batches that are full, return the last.

        While one is given nothing is under way: what remains of a life is counted from when it was asked for.
        """
        sent: deque[tuple[Kind, list[bytes]]] = deque()
        while keys or sent:
            while keys and len(sent) < _READS and batch.size < size:
                kind, named = keys.pop()
                self._client.call(self._script, _READ, len(named), 1, [packed(named), _READ_LIMIT])
                sent.append((kind, named))
            kind, named = sent.popleft()
            unread = named[self._collect(kind, named, batch) :]
            if unread:
                keys.append((kind, unread))
            if batch.size >= size and not sent:
                # Perhaps not all that this cursor names: a resumed copy sees it again.
                yield batch
                batch = Batch(batch.position, batch.fraction)
        if following:
            self._client.send(following)
        return batch

    def _prepare(self) -> None:
        """Load the script; before Redis 7 there is no EVALSHA_RO."""
        if not self._client.load(_READ):
            return
        try:
            self._script = b"EVALSHA_RO"
            self._client.call(self._script, _READ, 0, 1, [_READ_LIMIT])
            self._client.answer()
        except ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise
            self._script = b"EVALSHA"

    def _scan(self, cursor: int) -> bytes:
        common = _escaped(_common_prefix(list(self._prefixes.values()))) + b"*"
        return pack((b"SCAN", b"%d" % cursor, b"MATCH", common, b"COUNT", b"%d" % _SCAN_COUNT))

    def _named(self, keys: Sequence[bytes]) -> list[tuple[Kind, list[bytes]]]:
        """Sort keys by kind, a script's worth at a time."""
        task, group = self._prefixes["results"], self._prefixes["groups"]
        named: dict[Kind, list[bytes]] = {"results": [key for key in keys if key.startswith(task)]}
        if len(named["results"]) < len(keys):
            named["groups"] = [key for key in keys if key.startswith(group) and not _CHORD.search(key)]
        return [
            (kind, of_kind[first : first + _SCRIPT_KEYS])
            for kind, of_kind in named.items()
            for first in range(0, len(of_kind), _SCRIPT_KEYS)
        ]

    def _collect(self, kind: Kind, keys: Sequence[bytes], batch: Batch) -> int:
        """Take the next script's answer into a batch; tell how many of its keys it has read."""
        found = self._client.answer()
        now = now_ms()
        start = len(self._prefixes[kind])
        values = found[::2]
        read = len(values)
        ids = [key[start:] for key in keys[:read]]
        deadlines = [None if left == _NO_TTL else now + left for left in found[1::2]]
        documents: Iterable[Document] = map(DOCUMENT, zip(ids, values, deadlines, strict=True))
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
    rows = 1000

    def write(self, kind: Kind, records: Sequence[Document]) -> Written:
        """Store what is absent; what has expired meanwhile is not stored."""
        done = Written()
        sent: deque[int] = deque()
        self._client.load(_WRITE)
        for some in _script_fulls(records):
            now = now_ms()
            alive = [document for document in some if document[2] is None or document[2] > now]
            done.expired += len(some) - len(alive)
            if alive:
                self._send(kind, alive, now)
                sent.append(len(alive))
            if len(sent) == _WRITES:
                self._count(sent.popleft(), done)
        while sent:
            self._count(sent.popleft(), done)
        return done

    def _send(self, kind: Kind, documents: Sequence[Document], now: int) -> None:
        prefix = self._prefixes[kind]
        words = [packed([prefix + identifier for identifier, _, _ in documents])]
        for _, value, deadline in documents:
            left = b"" if deadline is None else b"%d" % (deadline - now)
            words += (b"$%d\r\n" % len(value), value, b"\r\n$%d\r\n%b\r\n" % (len(left), left))
        self._client.call(b"EVALSHA", _WRITE, len(documents), 2 * len(documents), words)

    def _count(self, documents: int, done: Written) -> None:
        stored = self._client.answer().count(b"1")
        done.copied += stored
        done.present += documents - stored


def _script_fulls(records: Sequence[Document]) -> Iterator[Sequence[Document]]:
    """Cut records into what one script writes."""
    for first in range(0, len(records), _SCRIPT_KEYS):
        some = records[first : first + _SCRIPT_KEYS]
        sizes = [len(value) for _, value, _ in some]
        start = size = 0
        for place, length in enumerate(sizes) if sum(sizes) > _SCRIPT_BYTES else ():
            if place > start and size + length > _SCRIPT_BYTES:
                yield some[start:place]
                start, size = place, 0
            size += length
        yield some[start:]


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
