"""The work of a lost term is deaf to every signal and in a call of C that holds the GIL: only a SIGKILL ends it.

And the machine is busy: every core is wanted by more processes than it has, all of them of ordinary priority.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.arena import families, processes
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.cluster import Cluster
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

LEASE = 3.0  # of the arena's TIMELY settings
UNREACHABLE = {PROCESS: "tests.arena.families:unreachable"}
BUSY = [sys.executable, "-c", "while True: pass"]


def end_the_session(shop: Cluster, token: int) -> None:
    """Terminate the backend of the node that acts for the term `token`."""
    assert shop.query(
        """select pg_terminate_backend(pid) from pg_locks l join highlander_singleton s
        on (l.classid::bigint << 32) | l.objid::bigint = s.key
        where l.locktype = 'advisory' and l.granted and s.token = %s""",
        token,
    )


def test_a_process_in_a_c_call_is_dead_when_the_next_term_begins(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=UNREACHABLE)
    leader = shop.start(*scenes.QUIET)
    token = scenes.acts(shop, PROCESS)
    old = int(shop.latest(PROCESS)[0])
    scenes.ready(leader, shop.start(*scenes.QUIET))
    end_the_session(shop, token)
    scenes.acts(shop, PROCESS, token)
    assert not processes.is_alive(old)
    assert leader.is_running
    shop.referee().verdict(PROCESS)


@pytest.mark.skipif("sys.platform != 'linux'", reason="there are supervisors on Linux only")
def test_a_process_in_a_c_call_is_dead_before_the_lease_of_its_frozen_node_ends(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=UNREACHABLE)
    leader = shop.start(*scenes.QUIET)
    token = scenes.acts(shop, PROCESS)
    old = int(shop.latest(PROCESS)[0])
    scenes.ready(leader, shop.start(*scenes.QUIET))
    os.kill(leader.keeper, signal.SIGSTOP)
    leader.send(signal.SIGSTOP)
    scenes.acts(shop, PROCESS, token)
    assert not processes.is_alive(old)
    shop.referee().verdict(PROCESS)


def test_a_task_in_a_c_call_is_dead_when_the_next_term_begins(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={})
    leader = shop.start(*scenes.QUIET, "--highlander-priority", "1")
    shop.leader(QUEUE, timeout=scenes.PATIENCE)
    shop.send(1, task="unreachable")
    token = scenes.acts(shop, QUEUE)
    (old,) = wait_until(lambda: families.writers(shop.journals, QUEUE), scenes.PATIENCE, "the task to have begun")
    scenes.ready(leader, shop.start(*scenes.QUIET))
    end_the_session(shop, token)
    scenes.ended(shop, 1)  # given back, and run again
    assert not processes.is_alive(old)
    shop.referee().verdict(QUEUE)


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Three processes for each core that do nothing but compute."""
    hogs = [subprocess.Popen(BUSY) for _ in range(3 * (os.cpu_count() or 1))]
    yield
    for hog in hogs:
        hog.kill()
        hog.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("busy_machine")
def test_a_lost_session_on_a_busy_machine_leads_to_no_overlap_and_a_new_term(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    leader, standby = scenes.leader_and_standby(shop)
    tokens = {singleton: scenes.acts(shop, singleton) for singleton in (PROCESS, QUEUE)}
    end_the_session(shop, tokens[PROCESS])
    for singleton, token in tokens.items():
        scenes.acts(shop, singleton, token)
    assert leader.is_running
    assert standby.is_running
    shop.referee().verdict(PROCESS, QUEUE)
