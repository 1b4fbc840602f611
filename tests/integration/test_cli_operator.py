"""The commands that move singletons, on a cluster of three workers: what they do, how long it takes, what they say."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena.cluster import Cluster
from tests.arena.waiting import wait_until
from tests.contract.nodes import Node
from tests.faults import scenes
from tests.faults.conftest import lead_once
from tests.faults.scenes import PROCESS, QUEUE
from tests.integration.commands import PASSWORD, invoke

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.arena.cluster import Worker
    from tests.arena.servers import Database, Redis

pytestmark = pytest.mark.postgres

FAR_BELOW_THE_LEASE = 1.5
"""Seconds; the arena's lease is 3 s."""


class Shop:
    """Three workers, and the commands of an operator."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def start(self, workers: int = 3) -> None:
        for _ in range(workers):
            self.cluster.start(*scenes.QUIET, "-X", QUEUE)
        scenes.ready(*self.cluster.workers)
        for worker in self.cluster.workers:
            runs_processes(worker)
        for name in (QUEUE, PROCESS):
            self.cluster.leader(name)

    def run(self, *words: str, code: int = 0) -> str:
        """What the command says, on both streams; it has to end with that exit code."""
        done = invoke(words, self.cluster.conf)
        assert done.exit_code == code, done.output
        return str(done.output)

    def facts(self, *words: str, code: int = 0) -> dict[str, Any]:
        return dict(json.loads(self.run(*words, "--json", code=code)))

    def leader(self, name: str) -> str:
        return f"{self.cluster.leader(name).name}@arena"

    def worker(self, name: str) -> Worker:
        return next(worker for worker in self.cluster.workers if f"{worker.name}@arena" == name)

    def others(self, name: str) -> list[str]:
        leader = self.leader(name)
        return [known for worker in self.cluster.workers if (known := f"{worker.name}@arena") != leader]

    def nobody_leads(self, name: str) -> bool:
        return name not in self.cluster.acting()


def runs_processes(worker: Worker) -> None:
    wait_until(lambda: "processes can run here" in worker.log, scenes.PATIENCE, f"{worker.name} to run processes")


@pytest.fixture
def shop(postgres: Database, redis_server: Redis, tmp_path: Path) -> Iterator[Shop]:
    redis_server.command("flushall")
    lead_once(postgres.url(), [QUEUE, PROCESS])
    conf = {"highlander_processes": {PROCESS: f"tests.arena.shop:{PROCESS}"}}
    url = postgres.url(password=PASSWORD)
    with Cluster(url, {"broker_url": redis_server.url()}, tmp_path, conf, pool="prefork") as cluster:
        yield Shop(cluster)


def test_a_step_down_hands_over_to_any_node_or_to_the_one_that_is_named(shop: Shop) -> None:
    shop.start()
    before, token = shop.leader(PROCESS), shop.cluster.token(PROCESS)
    facts = shop.facts("step-down", PROCESS, "--reason", "new disk")
    assert facts["from"] == before != facts["to"] == shop.leader(PROCESS)
    assert scenes.gap(shop.cluster, PROCESS, token) < FAR_BELOW_THE_LEASE
    assert "step-down asked for by" in shop.worker(before).log
    assert ": new disk" in shop.worker(before).log

    for wanted in shop.others(PROCESS):
        token = shop.cluster.token(PROCESS)
        assert wanted in shop.run("step-down", PROCESS, "--to", wanted)
        assert shop.leader(PROCESS) == wanted
        assert scenes.gap(shop.cluster, PROCESS, token) < 2 * FAR_BELOW_THE_LEASE  # it rests from its own step-down
    assert "already" in shop.run("step-down", PROCESS, "--to", shop.leader(PROCESS))
    shop.cluster.referee().verdict(PROCESS)


def test_a_paused_singleton_is_led_by_nobody_even_after_a_restart_until_it_is_resumed(shop: Shop) -> None:
    shop.start(workers=2)
    assert "is paused" in shop.run("pause", PROCESS, "--reason", "year-end closing")
    assert shop.nobody_leads(PROCESS)
    assert shop.leader(QUEUE)
    said = shop.run("status", code=1)
    assert "paused" in said
    assert "PAUSED by" in said
    assert f"year-end closing: {PROCESS}" in said

    for worker in list(shop.cluster.workers):
        worker.send(signal.SIGTERM)
    late = shop.cluster.start(*scenes.QUIET, "-X", QUEUE)
    runs_processes(late)
    wait_until(lambda: f"{PROCESS}: pause asked for" in late.log, scenes.PATIENCE, "it to say that there is a pause")
    assert shop.cluster.leader(QUEUE) is late
    assert shop.nobody_leads(PROCESS)

    facts = shop.facts("resume", PROCESS)
    assert facts["leaders"] == {PROCESS: f"{late.name}@arena"}
    assert shop.cluster.leader(PROCESS) is late
    assert "Nothing was paused" in shop.run("resume", PROCESS)
    shop.cluster.referee().verdict(PROCESS)


def test_everything_can_be_paused_and_resumed_at_once(shop: Shop) -> None:
    shop.start(workers=2)
    facts = shop.facts("pause", "--all")
    assert sorted(facts["paused"]) == sorted([QUEUE, PROCESS])
    assert shop.nobody_leads(QUEUE)
    assert shop.nobody_leads(PROCESS)
    assert "`resume --all`" in shop.run("resume", PROCESS, code=1)
    assert set(shop.facts("resume", "--all")["leaders"]) == {QUEUE, PROCESS}
    assert shop.leader(QUEUE)
    assert shop.leader(PROCESS)


@pytest.mark.slow
def test_a_pause_lets_a_running_task_finish_unless_it_has_to_be_now(shop: Shop) -> None:
    shop.start(workers=2)
    shop.cluster.send(1, seconds=600)
    shop.cluster.send(2, seconds=600)
    wait_until(lambda: shop.cluster.referee().task_runs(QUEUE), scenes.PATIENCE, "a task to run")
    facts = shop.facts("pause", QUEUE, "--timeout", "2", code=1)
    assert facts["still_led"] == [QUEUE]
    assert "is paused" in shop.run("pause", QUEUE, "--now")
    assert shop.nobody_leads(QUEUE)


def test_a_drained_node_hands_over_all_that_it_leads_and_takes_nothing_until_it_may_again(shop: Shop) -> None:
    shop.start(workers=2)
    node = shop.leader(PROCESS)
    tokens = {name: shop.cluster.token(name) for name in (QUEUE, PROCESS) if shop.leader(name) == node}
    (other,) = shop.others(PROCESS)
    facts = shop.facts("drain", node)
    assert facts["worker"] == node
    assert set(facts["leaders"].values()) == {other}
    for name in tokens:
        assert shop.leader(name) == other
    assert scenes.gap(shop.cluster, PROCESS, tokens[PROCESS]) < FAR_BELOW_THE_LEASE
    nodes = {entry["worker"]: entry for entry in shop.facts("status", "--nodes")["nodes"]}
    assert nodes[node]["drained"]
    assert not nodes[node]["eligible"]
    assert nodes[node]["leads"] == []
    assert sorted(nodes[other]["leads"]) == sorted([QUEUE, PROCESS])
    assert "cannot lead" in shop.run("step-down", PROCESS, "--to", node, code=1)
    assert "may lead again" in shop.run("drain", node, "--off")
    wait_until(lambda: shop.facts("status", "--nodes")["nodes"][0]["eligible"], scenes.PATIENCE, "it to take part")
    assert shop.facts("step-down", PROCESS, "--to", node)["to"] == node
    shop.cluster.referee().verdict(PROCESS)


def test_a_fenced_holder_stops_and_another_term_begins(shop: Shop) -> None:
    shop.start(workers=2)
    before, token = shop.leader(PROCESS), shop.cluster.token(PROCESS)
    facts = shop.facts("fence", PROCESS, "--yes")
    assert facts["from"] == before
    assert shop.cluster.token(PROCESS) > token
    assert f"lost '{PROCESS}', token {token}" in shop.worker(before).log
    shop.cluster.referee().verdict(PROCESS)


@pytest.mark.slow
def test_a_preferred_node_leads_whenever_it_is_there(shop: Shop) -> None:
    shop.start(workers=2)
    (other,) = shop.others(PROCESS)
    assert "belongs to" in shop.run("prefer", PROCESS, other)
    wait_until(lambda: shop.leader(PROCESS) == other, scenes.PATIENCE, "it to be handed over")
    shop.worker(other).send(signal.SIGKILL)
    shop.cluster.leader(PROCESS, other_than=shop.cluster.token(PROCESS))
    assert "Any node may lead" in shop.run("prefer", PROCESS, "--off")
    shop.cluster.referee().verdict(PROCESS)


def test_the_history_tells_who_led_and_why_it_ended_with_the_gaps(shop: Shop, tmp_path: Path) -> None:
    shop.start(workers=2)
    before = shop.leader(PROCESS)
    after = shop.facts("step-down", PROCESS, "--reason", "new disk")["to"]
    terms = [term for term in shop.facts("history", PROCESS)["terms"] if term["elected_at"]]
    assert [(term["worker"], term["lasts"]) for term in terms] == [(before, False), (after, True)]
    assert terms[0]["reason"].endswith(": new disk")
    assert terms[0]["seconds_led"] > 0
    assert 0 <= terms[1]["gap"] < FAR_BELOW_THE_LEASE
    said = shop.run("history", PROCESS)
    for word in (before, after, "new disk", "still leads", " ms"):
        assert word in said
    line = shop.run("history", "--plot", "-")
    assert line.count("█") > 10
    assert before in line
    for name, beginning in (("time.svg", b"<?xml"), ("time.png", b"\x89PNG")):
        shop.run("history", "--plot", str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(beginning)
    assert "does not end in" in shop.run("history", "--plot", "time.txt", code=1)
    assert "cannot be written" in shop.run("history", "--plot", str(tmp_path / "no" / "time.svg"), code=1)


# -- without a cluster -------------------------------------------------------------------------------------------------


def asked(postgres: Database, *words: str, user: str | None = None, **conf: Any) -> Any:
    url = postgres.url(password=PASSWORD, **({"user": user} if user else {}))
    return invoke(words, {"highlander_url": url, "highlander_queues": ["ledger"], **conf})


def test_a_name_that_nobody_has_is_answered_with_those_that_there_are(postgres: Database) -> None:
    with Node(postgres.url()):
        for words in (["pause"], ["resume"], ["step-down"], ["fence", "--yes"], ["history"], ["prefer", "--off"]):
            done = asked(postgres, words[0], "legder", *words[1:])
            assert done.exit_code == 1
            assert "there is no singleton 'legder' in the namespace 'shop'" in done.stderr
            assert "Did you mean 'ledger'?" in done.stderr
        done = asked(postgres, "drain", "w9@arena")
        assert done.exit_code == 1
        assert "no node goes by 'w9@arena'" in done.stderr
    error = json.loads(asked(postgres, "pause", "legder", "--json").stdout)["error"]
    assert error["code"] == "refused"


def test_what_nobody_leads_cannot_step_down_or_be_fenced(postgres: Database) -> None:
    with Node(postgres.url()) as one:
        assert "nobody leads 'ledger'" in asked(postgres, "step-down", "ledger").stderr
        assert "nobody holds the lock of 'ledger'" in asked(postgres, "fence", "ledger", "--yes").stderr
        one.lead()
        done = asked(postgres, "step-down", "ledger", "--to", "n1@arena", "--timeout", "0")
        assert "is led by n1@arena already" in done.stdout


def test_words_that_do_not_fit_together_are_a_mistake_of_usage(postgres: Database) -> None:
    for words in (["pause"], ["pause", "ledger", "--all"], ["resume"], ["prefer", "ledger"], ["drain"]):
        done = asked(postgres, *words)
        assert done.exit_code == 2
        assert "Usage:" in done.stderr


def test_without_tables_there_is_nothing_to_order(postgres: Database) -> None:
    done = asked(postgres, "pause", "ledger")
    assert done.exit_code == 78
    assert "there are no tables highlander_*" in done.stderr


def test_tables_of_an_older_release_can_be_read_and_take_no_orders(postgres: Database) -> None:
    with Node(postgres.url()):
        postgres.execute("drop table highlander_order, highlander_node")
        postgres.execute("delete from highlander_migration where version > 3")
        assert asked(postgres, "status").exit_code == 1
        done = asked(postgres, "pause", "ledger")
        assert done.exit_code == 78
        assert "are of version 3, and this needs 4" in done.stderr
        assert "highlander migrate" in done.stderr


def test_a_role_that_may_only_read_sees_the_history_and_gives_no_orders(postgres: Database) -> None:
    with Node(postgres.url()) as one:
        one.heartbeat({"ledger": one.lead().token}, {"ledger"})
        postgres.execute("create role reader login")
        try:
            tables = ", ".join(f"highlander_{name}" for name in ("singleton", "term", "order", "node", "migration"))
            postgres.execute(f"grant select on {tables} to reader")
            assert "n1@arena" in asked(postgres, "history", user="reader").stdout
            assert "n1@arena" in asked(postgres, "status", "--nodes", user="reader").stdout
            done = asked(postgres, "pause", "ledger", user="reader")
            assert done.exit_code == 78
            assert "insert on highlander_order" in done.stderr
            postgres.execute("grant insert, update, delete on highlander_order to reader")
            assert asked(postgres, "pause", "ledger", "--timeout", "0", user="reader").exit_code == 1
            done = asked(postgres, "fence", "ledger", "--yes", user="reader")
            assert done.exit_code == 78
            assert "grant pg_signal_backend to <role>" in done.stderr
        finally:
            postgres.execute("drop owned by reader")
            postgres.execute("drop role reader")


def test_the_pause_of_another_namespace_is_not_ours(postgres: Database) -> None:
    with Node(postgres.url()):
        asked(postgres, "pause", "ledger", highlander_namespace="bank")
        assert "PAUSED" not in asked(postgres, "status").stderr
        assert "PAUSED" in asked(postgres, "status", highlander_namespace="bank").stderr
