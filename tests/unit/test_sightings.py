"""What a standby tells of a leader that it cannot replace: since when it has seen no new heartbeat."""

from __future__ import annotations

from celery_highlander.election import node as n
from celery_highlander.election import protocol as p
from celery_highlander.election.lease import Timing

TIMING = Timing()
LED = p.Predecessor(token=7, heartbeats=4, owed=6.0, stopped=True, same_instance=True)


def standby() -> n.Node:
    node = n.Node(("beat",), TIMING, float, "me")
    node.handle(n.To("beat", p.Campaign()), 0.0)
    node.handle(n.Connected(), 0.0)
    return node


def shown(node: n.Node, now: float, heartbeats: int, *, granted: bool = False) -> dict[str, float]:
    """Answer a poll; the sightings after that."""
    node.handle(p.Tick(), now)
    node.handle(n.Polled((n.PollRow("beat", granted, 7, heartbeats),), {}, None), now)
    return node.sightings(now)


def test_the_first_sight_of_the_newest_heartbeat_counts() -> None:
    node = standby()
    assert node.sightings(0.0) == {}
    assert shown(node, 1.0, 4) == {"beat": 1.0}
    assert shown(node, 2.0, 4) == {"beat": 1.0}
    assert shown(node, 3.0, 5) == {"beat": 3.0}


def test_a_node_without_a_session_sees_nothing() -> None:
    node = standby()
    shown(node, 1.0, 4)
    node.handle(n.Disconnected("gone"), 2.0)
    assert node.sightings(2.0) == {}


def test_a_node_that_leads_or_does_not_want_to_sees_nothing() -> None:
    node = standby()
    shown(node, 1.0, 4)
    assert shown(node, 2.0, 4, granted=True) == {}
    node.handle(n.TermsBegun({"beat": p.Begun(8, 2.0, LED)}), 2.1)
    assert node.sightings(2.1) == {}

    node = standby()
    shown(node, 1.0, 4)
    node.handle(n.To("beat", p.Withdraw("no broker")), 1.5)
    assert node.sightings(1.5) == {}


def test_what_was_seen_before_an_own_term_is_forgotten_until_the_next_poll() -> None:
    node = standby()
    shown(node, 1.0, 4)
    shown(node, 2.0, 4, granted=True)
    node.handle(n.TermsBegun({"beat": p.Begun(8, 2.0, LED)}), 2.1)
    node.handle(n.To("beat", p.Withdraw("no broker", 0.0)), 2.2)
    node.handle(n.To("beat", p.WorkStopped()), 2.3)
    node.handle(n.LockReleased("beat"), 2.4)
    assert node.contests["beat"].phase is p.Phase.STANDBY
    assert node.sightings(2.4) == {}
