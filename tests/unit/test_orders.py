"""What a node does when operators ask for something: pause, step-down, drain, prefer."""

from __future__ import annotations

import pytest

from celery_highlander.election import node as n
from celery_highlander.election import protocol as p
from celery_highlander.election.placement import STEADY_AFTER, Member
from tests.unit.test_node import PAIR, START, TIMING, Bench

PAUSE = n.Order(n.Kind.PAUSE, "beat", "pause asked for")
PAUSE_ALL = n.Order(n.Kind.PAUSE, "", "pause asked for")
DRAIN = n.Order(n.Kind.DRAIN, "", "drain asked for", nodes=frozenset(["me"]))
OTHER = PAIR[1].node
REST = TIMING.heartbeat_interval + TIMING.heartbeat_timeout


def settle(bench: Bench, orders: tuple[n.Order, ...] | None, members: tuple[Member, ...]) -> list[n.NodeEffect]:
    """Answer all that is asked for at this instant, no lock being granted; return everything that was."""
    seen: list[n.NodeEffect] = []
    waiting, bench.effects = bench.effects, []
    while waiting:
        effect = waiting.pop(0)
        seen.append(effect)
        if isinstance(effect, n.Heartbeat):
            bench.feed(n.HeartbeatAnswered(bench.now))
        elif isinstance(effect, n.Poll):
            rows = tuple(n.PollRow(name, False, 7, 4) for name in effect.names)
            bench.feed(n.Polled(rows, {}, *((members, orders) if effect.members else (None, None))))
        waiting += bench.effects
        bench.effects = []
    return seen


def told(bench: Bench, *orders: n.Order, members: tuple[Member, ...] = PAIR[:1]) -> Bench:
    """A notification, and the poll after it that reads `orders`; the bench shows all that came of it."""
    settle(bench, None, members)
    bench.feed(n.Notified())
    bench.effects = settle(bench, orders, members)
    return bench


def tries(bench: Bench, until: float, members: tuple[Member, ...]) -> list[float]:
    """When the node tries for a lock until then, without ever getting it."""
    bench.polls.clear()
    bench.effects = []
    bench.live_until(until=until, members=members)
    return [at for at, poll in bench.polls if poll.trying]


def trying(bench: Bench) -> frozenset[str]:
    """What the last poll tried for."""
    return [effect for effect in bench.effects if isinstance(effect, n.Poll)][-1].trying


@pytest.mark.parametrize("order", [PAUSE, PAUSE_ALL, DRAIN])
def test_a_leader_stops_when_it_is_paused_or_drained_and_running_work_may_finish(order: n.Order) -> None:
    bench = told(Bench().lead(), order)
    assert bench.one(n.Stop) == n.Stop("beat", 8, order.reason, None)
    bench.tell(p.WorkStopped())
    assert bench.one(n.ReleaseLock).mark == n.Mark("beat", 8, order.reason)


def test_an_impatient_order_has_the_work_killed() -> None:
    bench = told(Bench().lead(), n.Order(n.Kind.PAUSE, "beat", "now", patient=False))
    assert bench.one(n.Stop).kill_deadline == START + TIMING.drain_timeout


def test_an_impatient_order_after_a_patient_one_has_the_work_killed_too() -> None:
    bench = told(Bench().lead(), PAUSE)
    told(bench, n.Order(n.Kind.PAUSE, "beat", "now", patient=False))
    assert bench.one(n.Stop).kill_deadline == START + TIMING.drain_timeout


@pytest.mark.parametrize("order", [PAUSE, PAUSE_ALL, DRAIN])
def test_nobody_tries_for_what_is_paused_until_it_is_resumed_and_then_at_once(order: n.Order) -> None:
    bench = told(Bench().connect(), order)
    assert not tries(bench, bench.now + 30, PAIR[:1])
    assert trying(told(bench)) == {"beat"}


def test_a_lock_that_is_granted_while_a_pause_arrives_leads_to_no_lasting_term() -> None:
    bench = Bench().connect().poll_answered("beat")
    begin = bench.effects
    bench.feed(n.Notified())
    bench.effects = begin
    bench.begun()
    assert bench.phase() is p.Phase.LEADING
    assert told(bench, PAUSE).one(n.Stop).name == "beat"


def test_a_pause_of_one_singleton_leaves_the_others_alone() -> None:
    bench = told(Bench("beat", "ledger").lead(), PAUSE)
    assert bench.one(n.Stop).name == "beat"
    assert bench.phase("ledger") is p.Phase.LEADING


def test_a_drained_node_shows_that_it_takes_no_part_and_shows_itself_again_afterwards() -> None:
    bench = told(Bench().lead(), DRAIN)
    assert bench.one(n.Show) == n.Show(taking_part=False)
    told(bench)
    assert bench.one(n.Show) == n.Show(taking_part=True)


def test_the_drain_of_another_node_is_not_ours() -> None:
    bench = told(Bench().lead(), n.Order(n.Kind.DRAIN, "", "drain", nodes=frozenset(["other"])))
    assert not bench.asked(n.Stop)


def test_a_step_down_ends_the_term_that_was_meant_and_leaves_another_node_the_time_to_take_over() -> None:
    bench = told(Bench().lead(), n.Order(n.Kind.STEP_DOWN, "beat", "asked", token=8))
    bench.tell(p.WorkStopped()).feed(n.LockReleased("beat"))
    first = tries(bench, bench.now + 2 * REST, PAIR[:1])[0]
    assert START + REST <= first < START + REST + 2 * TIMING.poll_interval


def test_a_step_down_of_an_earlier_term_is_over() -> None:
    assert not told(Bench().lead(), n.Order(n.Kind.STEP_DOWN, "beat", "asked", token=7)).asked(n.Stop)


def test_what_belongs_to_another_node_is_left_to_it_but_not_for_ever() -> None:
    prefer = n.Order(n.Kind.PREFER, "beat", "asked", nodes=frozenset([OTHER]))
    bench = told(Bench().connect(), prefer, members=PAIR)
    assert tries(bench, START + 3 * REST, PAIR)[0] > START + REST


def test_what_belongs_to_a_node_that_is_not_there_may_be_led_by_any() -> None:
    prefer = n.Order(n.Kind.PREFER, "beat", "asked", nodes=frozenset(["gone"]))
    assert trying(told(Bench().connect(), prefer, members=PAIR)) == {"beat"}


def test_the_preferred_node_takes_more_than_its_share_and_keeps_it() -> None:
    prefer = tuple(n.Order(n.Kind.PREFER, name, "asked", nodes=frozenset(["me"])) for name in ("a", "b"))
    bench = told(Bench("a", "b").connect(), *prefer, members=PAIR)
    assert trying(bench) == {"a", "b"}
    bench.feed(n.Notified())
    bench.poll_answered("a", "b", members=PAIR).begun()
    bench.live_until(n.Stop, until=START + 3 * STEADY_AFTER, members=PAIR)
    assert bench.phase("a") is bench.phase("b") is p.Phase.LEADING


def test_a_leader_hands_over_to_the_preferred_node_once_that_has_been_there_for_a_while() -> None:
    prefer = n.Order(n.Kind.PREFER, "beat", "asked", nodes=frozenset([OTHER]))
    bench = told(Bench().lead(), prefer, members=PAIR)
    assert not bench.asked(n.Stop)
    bench.effects = []
    bench.live_until(n.Stop, until=START + 3 * STEADY_AFTER, members=PAIR)
    assert bench.one(n.Stop).reason == "another node is preferred"
    assert bench.now >= START + STEADY_AFTER


def test_a_node_that_took_over_from_a_preferred_one_that_does_not_lead_keeps_it() -> None:
    prefer = n.Order(n.Kind.PREFER, "beat", "asked", nodes=frozenset([OTHER]))
    bench = told(Bench().connect(), prefer, members=PAIR)
    tries(bench, START + 2 * REST, PAIR)
    settle(bench, None, PAIR)
    bench.feed(n.Notified())
    assert trying(bench) == {"beat"}
    bench.poll_answered("beat", members=PAIR).begun()
    bench.live_until(n.Stop, until=bench.now + 3 * STEADY_AFTER, members=PAIR)
    assert bench.phase() is p.Phase.LEADING


def test_what_another_leader_was_told_to_give_up_is_taken_beyond_the_share_and_kept() -> None:
    bench = told(Bench("a", "b").connect(), n.Order(n.Kind.STEP_DOWN, "b", "asked", token=7), members=PAIR)
    bench.feed(n.Notified())
    bench.poll_answered("a", "b", members=PAIR).begun()
    bench.live_until(n.Stop, until=START + 3 * STEADY_AFTER, members=PAIR)
    assert bench.phase("a") is bench.phase("b") is p.Phase.LEADING


def test_the_rest_after_a_step_down_is_over_for_a_node_that_is_named_as_the_next_leader() -> None:
    bench = told(Bench().lead(), n.Order(n.Kind.STEP_DOWN, "beat", "asked", token=8))
    bench.tell(p.WorkStopped()).feed(n.LockReleased("beat"))
    prefer = n.Order(n.Kind.PREFER, "beat", "asked", nodes=frozenset(["me"]))
    assert trying(told(bench, prefer)) == {"beat"}


def test_a_worker_that_has_withdrawn_is_not_brought_back_by_a_preference() -> None:
    bench = told(Bench().lead(), n.Order(n.Kind.STEP_DOWN, "beat", "asked", token=8))
    bench.tell(p.WorkStopped()).feed(n.LockReleased("beat"))
    bench.tell(p.Withdraw("main loop hung"))
    prefer = n.Order(n.Kind.PREFER, "beat", "asked", nodes=frozenset(["me"]))
    assert not any(isinstance(effect, n.Poll) and effect.trying for effect in told(bench, prefer).effects)
