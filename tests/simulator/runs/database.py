"""A model of PostgreSQL as singleton runs use it; held to the same contract as the real one, in tests/contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from celery_highlander.errors import LockSessionError
from celery_highlander.store.runs import SETTLED, Registration, Tried, Try

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from celery_highlander.store.terms import Identity

TOKENS_PER_TIMELINE = 1 << 32


class Row(NamedTuple):
    """Who holds a key, or held it when its session ended."""

    holder: str
    lease: float
    task_id: str


class Runner(NamedTuple):
    """A session that runs rely on."""

    lease: float
    heartbeats: int


class Database:
    """One primary at a time; `rows` are unlogged, `runners` and `tokens` are logged."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {SETTLED: Row("", 0.0, "")}
        self.runners: dict[str, Runner] = {}
        self.tokens: dict[int, int] = {}
        self.fenced: set[int] = set()  # keys of which a fenced transaction is open
        self.locks: dict[int, tuple[RunSession, int]] = {}  # who has them, and how often: a session's own ones stack
        self.sessions: list[RunSession] = []
        self.instance = self.timeline = 1
        self._undo: list[tuple[str, Runner | None]] = []

    def restart(self) -> None:
        """Shut down in good order, and start again."""
        for session in list(self.sessions):
            session.end()
        self.fenced.clear()
        self.instance += 1

    def crash(self) -> None:
        """Start again after a crash: what is not logged is gone."""
        self.restart()
        self.rows.clear()

    def promote(self, lost: int = 0) -> None:
        """Become a replica, which never had what is not logged, nor the last `lost` changes of sessions."""
        self.crash()
        self.timeline += 1
        for _ in range(min(lost, len(self._undo))):
            holder, before = self._undo.pop()
            if before is None:
                self.runners.pop(holder, None)
            else:
                self.runners[holder] = before
        self._undo.clear()

    def put_runner(self, holder: str, runner: Runner | None) -> None:
        """Write the row of a session, or delete it."""
        self._undo.append((holder, self.runners.get(holder)))
        if runner is None:
            self.runners.pop(holder, None)
        else:
            self.runners[holder] = runner


class RunSession:
    """A session, with the statements of `RunLocks`."""

    def __init__(self, database: Database, holder: str, lease: float) -> None:
        self.database = database
        self.holder = holder
        self.lease = lease
        self.alive = True
        database.sessions.append(self)

    def end(self) -> None:
        """The server ends it: its locks go at once, its rows stay."""
        if self.alive:
            self.alive = False
            self.database.sessions.remove(self)
            for key in [key for key, (session, _) in self.database.locks.items() if session is self]:
                del self.database.locks[key]

    def register(self, _who: Identity | None = None) -> Registration:
        database = self.database
        known = database.runners.get(self.holder)
        database.put_runner(self.holder, Runner(self.lease, 0 if known is None else known.heartbeats + 1))
        longest = max(runner.lease for runner in database.runners.values())
        return Registration(SETTLED in database.rows, max(self.lease, longest))

    def settle(self) -> None:
        self.database.rows.setdefault(SETTLED, Row("", 0.0, ""))

    def beat(self) -> None:
        known = self.database.runners.get(self.holder)
        if known is None:
            raise LockSessionError("the row of this node's lock session is gone")
        self.database.put_runner(self.holder, Runner(known.lease, known.heartbeats + 1))

    def runners(self) -> dict[str, tuple[int, float]]:
        return {holder: (runner.heartbeats, runner.lease) for holder, runner in self.database.runners.items()}

    def take(
        self,
        tries: Sequence[Try],
        excluded: Collection[int],
        paid: Collection[str],
        snapshot: Mapping[int, Row] | None = None,
    ) -> dict[int, Tried]:
        """Try each; `snapshot` is what the rows were when the statement began, if that was a while ago."""
        before = dict(self.database.rows) if snapshot is None else snapshot
        if all(one.limit == 1 for one in tries):
            excluded = ()  # a key without slots is never tried for by a session that holds it
        return {one.number: self._try(one, excluded, paid, before) for one in tries}

    def _try(self, one: Try, excluded: Collection[int], paid: Collection[str], before: Mapping[int, Row]) -> Tried:
        rows = self.database.rows
        slots = [one.base + (one.start + slot) % one.limit for slot in range(one.limit)]
        key = next((slot for slot in slots if slot not in excluded and self._lock(slot)), None)
        if key is None:
            return Tried(None, False, *(before.get(one.base) or (None, 0.0, None)))
        latest = rows.get(key)
        if latest is None or latest.holder in paid:
            rows[key] = Row(self.holder, self.lease, one.task_id)
            return self._begin(one, key, before.get(key))
        return self._owed(key, latest, before)

    def _owed(self, key: int, latest: Row, _before: Mapping[int, Row]) -> Tried:
        self._unlock(key)
        return Tried(key, False, *latest)

    def _begin(self, one: Try, key: int, seen: Row | None) -> Tried:
        database = self.database
        if not one.fenced:
            return Tried(key, True, *(seen or (None, 0.0, None)))
        if key in database.fenced:
            self.free([key])
            return Tried(None, taken=False, holder=self.holder)
        token = max(database.tokens.get(key, 0) + 1, database.timeline * TOKENS_PER_TIMELINE)
        database.tokens[key] = token
        return Tried(key, taken=True, token=token)

    def _lock(self, key: int) -> bool:
        session, count = self.database.locks.get(key, (self, 0))
        if session is self:
            self.database.locks[key] = (self, count + 1)
        return session is self

    def _unlock(self, key: int) -> bool:
        session, count = self.database.locks.get(key, (None, 0))
        if session is not self:
            return False
        if count > 1:
            self.database.locks[key] = (self, count - 1)
        else:
            del self.database.locks[key]
        return True

    def free(self, keys: Iterable[int]) -> None:
        unlocked = []
        for key in set(keys):
            row = self.database.rows.get(key)
            if row is not None and row.holder == self.holder:
                del self.database.rows[key]
            unlocked.append(self._unlock(key))
        if not all(unlocked):
            raise LockSessionError("a lock that should have been held was not")

    def mark(self, ended: Mapping[str, Collection[int]]) -> None:
        database = self.database
        for holder, running in ended.items():
            for key in [key for key, row in database.rows.items() if row.holder == holder and key not in running]:
                del database.rows[key]
            if not running:
                database.put_runner(holder, None)
