"""How many singletons a node should lead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from celery_highlander.election.placement import Member, fair_share


def members(*priorities: int) -> tuple[Member, ...]:
    return tuple(Member(f"node{number}", priority, eligible=True) for number, priority in enumerate(priorities))


def test_a_node_alone_leads_everything() -> None:
    assert fair_share(7, "node0", 0, members(0)) == 7


def test_a_node_that_does_not_see_itself_yet_counts_itself() -> None:
    assert fair_share(4, "new", 0, members(0)) == 2
    assert fair_share(4, "new", 0, ()) == 4


def test_equal_nodes_share_evenly_and_round_up() -> None:
    assert fair_share(7, "node1", 0, members(0, 0, 0)) == 3
    assert fair_share(6, "node1", 0, members(0, 0, 0)) == 2


def test_only_the_highest_priority_has_a_share() -> None:
    assert fair_share(6, "node0", 1, members(1, 0, 1)) == 3
    assert fair_share(6, "node1", 0, members(1, 0, 1)) == 0


def test_a_node_that_is_not_eligible_takes_no_part() -> None:
    others = (Member("a", 5, eligible=False), Member("b", 0, eligible=True))
    assert fair_share(4, "b", 0, others) == 4


def test_no_singletons_make_no_share() -> None:
    assert fair_share(0, "node0", 0, members(0, 0)) == 0


@given(st.integers(0, 50), st.lists(st.integers(-2, 2), min_size=1, max_size=8))
def test_the_shares_suffice_for_everything_and_nobody_has_more_than_a_rounded_one(
    total: int, priorities: list[int]
) -> None:
    everybody = members(*priorities)
    shares = [fair_share(total, member.node, member.priority, everybody) for member in everybody]
    assert sum(shares) >= total
    sharing = [share for share, priority in zip(shares, priorities, strict=True) if priority == max(priorities)]
    assert len(set(sharing)) == 1
    assert sharing[0] * len(sharing) < total + len(sharing)
