"""Which runs really act, and whether they may: the invariants of singleton runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_highlander.keeper import run_table as r
from tests.simulator.referee import Referee

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.simulator.runs.database import Database
    from tests.simulator.runs.link import Link
    from tests.simulator.runs.node import Run


class RunReferee(Referee):
    """Watches the whole schedule with the one true clock."""

    def __init__(self, tracing: bool) -> None:
        super().__init__(tracing)
        self.acting: dict[int, list[Run]] = {}
        self.grants = self.overtaken = 0
        self.results: dict[str, int] = {}
        self._tokens: dict[int, int] = {}
        self._asking: dict[Link, int] = {}

    def active(self, node: int) -> Iterator[Run]:
        """Runs of a node that act."""
        for runs in self.acting.values():
            for run in runs:
                if run.node.number == node:
                    yield run

    def began(self, run: Run, key: int, token: int | None) -> None:  # type: ignore[override]  # of runs, not of terms
        """A run was told that it holds its key."""
        self.grants += 1
        if run.over:
            return  # it ended while it was answered
        node, link = run.node, run.link
        assert link is not None
        if self.tracing:
            self.note(f"{run} begins with {key}")
        if node.clock() >= node.timing.kill_deadline(link.lease_end) + 1e-6:
            self.violated(f"{run} begins when it has to be dead")
        if token is not None:
            if token <= self._tokens.get(key, 0):
                self.violated(f"token {token:#x} of {key} is not above {self._tokens[key]:#x}")
            self._tokens[key] = token
        others = self.acting.setdefault(run.call.base, [])
        if any(self._is_without_lock(other) for other in others):
            self.overtaken += 1
        count = [other for other in others if not self._may_be_overtaken(other)]
        if len(count) >= run.limit:
            beside = ", ".join(str(other) for other in count)
            self.violated(f"{run} begins beside {beside}, and {run.limit} may act")
        others.append(run)

    @staticmethod
    def _is_without_lock(run: Run) -> bool:
        return run.link is None or run.link.session is None or not run.link.session.alive

    def _may_be_overtaken(self, run: Run) -> bool:
        """A run that need not end with its session is on its own once the lease is over."""
        link = run.link
        return not run.call.abort and self._is_without_lock(run) and link is not None and (
            run.node.clock() > link.lease_end
        )  # fmt: skip

    def ended(self, run: Run) -> None:
        """A run has really ended."""
        others = self.acting.get(run.call.base, [])
        if run not in others:
            return
        others.remove(run)
        link = run.link
        assert link is not None
        if self.tracing:
            self.note(f"{run} has ended, {link.lease_end - run.node.clock():.3f} s before its lease does")
        if run.call.abort and run.node.clock() > link.lease_end:
            self.violated(f"{run} outlived its lease by {run.node.clock() - link.lease_end:.3f} s")

    def answered(self, run: Run) -> None:
        """A run was answered: not long after the time that it would wait for, but for lost sessions and pauses."""
        self.results[run.answer] = self.results.get(run.answer, 0) + 1
        timing = run.node.timing
        times = 1 + run.node.losses - run.losses
        patience = timing.heartbeat_interval + timing.heartbeat_timeout + r.PATIENCE + 1.0
        stood_still = run.node.schedule.stood_still
        if self.now - run.came_at > run.call.wait + times * patience + stood_still:
            self.violated(f"{run} was answered {run.answer!r} after {self.now - run.came_at:.3f} s")

    def submitted(self, link: Link, effect: object) -> None:
        """A statement is handed to the session: one at most tries for a base."""
        if isinstance(effect, r.Take):
            bases = [one.base for one in effect.tries]
            if len(set(bases)) < len(bases):
                self.violated(f"{link.holder} tries twice for a key in one statement")

    def check_locks(self, database: Database) -> None:
        """No session has a lock twice: it would not be free when it is given back."""
        for key, (session, times) in database.locks.items():
            if times > 1:
                self.violated(f"{session.holder} has the lock of {key} {times} times")

    def check_dead(self, database: Database, holders: Iterable[str | None]) -> None:
        """Whoever is taken for dead has no session, and so will never have another heartbeat."""
        alive = {session.holder for session in database.sessions}
        for holder in holders:
            if holder in alive:
                self.violated(f"the session {holder} counts as dead, and lives")

    def settled(self, now: float) -> None:
        """The mark is left: whatever the table has lost has ended."""
        if self.tracing:
            self.note(f"settled at {now:.3f}")

    def check_end(self, database: Database) -> None:
        """When everything has ended, nothing is held."""
        if database.locks:
            self.violated(f"locks are held without a run: {sorted(database.locks)}")
        rows = [key for key in database.rows if key >= 0]
        if rows:
            self.violated(f"keys are taken without a run: {[(key, database.rows[key].holder) for key in rows]}")
