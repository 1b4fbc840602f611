"""When the table of runs asks for a run to be killed, and when its keeper may leave."""

from __future__ import annotations

from celery_highlander.election.lease import Timing
from celery_highlander.keeper import run_table as r
from celery_highlander.store.runs import Registration, Tried

RUN = (1, 1)
WANT = r.Want(base=1024, limit=1, name="k", task="t", task_id="id", wait=0.0, fenced=False, abort=True)
TIMING = Timing(
    lease=3.0, heartbeat_interval=0.4, heartbeat_timeout=0.8, drain_timeout=1.0, kill_margin=0.4, poll_interval=0.2
)


def table_with_a_run() -> r.RunTable:
    table = r.RunTable(TIMING, lambda: 0.0)
    table.handle(r.SessionOpen("holder", "server"), 0.0)
    table.handle(r.Wanted(RUN, WANT), 0.0)
    asked = table.handle(r.Registered(0.0, Registration(settled=True, longest_lease=3.0)), 0.0)
    (take,) = (effect for effect in asked if isinstance(effect, r.Take))
    (one,) = take.tries
    assert r.Answer(RUN, "held", WANT.base, None) in table.handle(
        r.Taken({one.number: Tried(WANT.base, taken=True)}), 0.0
    )
    return table


def test_a_run_whose_session_is_lost_is_due_at_its_deadline_and_killed_once() -> None:
    table = table_with_a_run()
    (lost,) = (effect for effect in table.handle(r.SessionLost("gone"), 1.0) if isinstance(effect, r.Lost))
    assert lost.kill_at == TIMING.kill_deadline(3.0)
    assert table.next_deadline() == lost.kill_at
    assert table.handle(r.Tick(), lost.kill_at + 0.1) == [r.KillRun(RUN)]
    assert table.next_deadline() > lost.kill_at
    assert r.KillRun(RUN) not in table.handle(r.Tick(), lost.kill_at + 0.2)


def test_a_node_without_runs_asks_nothing_of_its_sessions() -> None:
    table = r.RunTable(TIMING, lambda: 0.0)
    assert table.handle(r.SessionOpen("first", "server"), 0.0) == []
    assert table.handle(r.SessionLost("gone"), 1.0) == []
    assert table.handle(r.SessionOpen("second", "server"), 2.0) == []
    assert table.idle
