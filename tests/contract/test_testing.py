"""`celery_highlander.testing`: its doubles do what the real things do, and its helpers what their page says."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from sqlalchemy import create_engine

from celery_highlander import Highlander, SingletonConflictError, SingletonTask, StaleTermError, leader_elected
from celery_highlander.clock import boot_time
from celery_highlander.election.keys import lock_key
from celery_highlander.keeper.cell import LeaseCell, create
from celery_highlander.keeper.children import ADDRESS_VARIABLE
from celery_highlander.keeper.run_table import Want
from celery_highlander.store.waiting import Waiting
from celery_highlander.tasks import alone, client
from celery_highlander.testing import FakeLeadership, SingletonRuns, StillRunningError, elected, leading, send_elected
from celery_highlander.testing.runs import FakeRunClient
from celery_highlander.worker.leadership import Leadership, TermInfo, current_leadership
from tests.contract.nodes import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres
LIMIT = 10.0


# -- terms -------------------------------------------------------------------------------------------------------------


class Real:
    """A term with a lease cell of its own, as a singleton process has it."""

    def __init__(self) -> None:
        self._descriptor = create()
        self._cell = LeaseCell(self._descriptor)
        self._cell.deadline = boot_time() + 60.0
        self.leadership = Leadership(TermInfo("ledger", 7, time.time(), "shop", "", 0.0), self._cell)

    def expire(self) -> None:
        self._cell.deadline = 0.0

    def depose(self) -> None:
        self.leadership._must_stop()

    def close(self) -> None:
        os.close(self._descriptor)


class Fake:
    """The double."""

    def __init__(self) -> None:
        self.leadership = FakeLeadership("ledger", token=7, lease=60.0)
        self.expire = self.leadership.expire
        self.depose = self.leadership.depose

    def close(self) -> None:
        pass


@pytest.fixture(params=[Real, Fake])
def term(request: pytest.FixtureRequest) -> Iterator[Real | Fake]:
    made = request.param()
    yield made
    made.close()


def test_a_term_is_valid_until_it_is_deposed(term: Real | Fake) -> None:
    leadership = term.leadership
    assert (leadership.name, leadership.token) == ("ledger", 7)
    assert abs(leadership.elected_at - time.time()) < LIMIT
    assert leadership.is_valid()
    assert not leadership.wait(0.001)
    assert 50.0 < leadership.lease_deadline - boot_time() <= 60.0
    term.depose()
    assert not leadership.is_valid()
    assert leadership.wait(LIMIT)
    assert leadership.wait()


def test_a_term_whose_lease_has_run_out_is_not_valid(term: Real | Fake) -> None:
    term.expire()
    assert not term.leadership.is_valid()
    assert term.leadership.wait(0.001)
    assert term.leadership.wait()


def test_a_wait_ends_when_the_term_is_deposed(term: Real | Fake) -> None:
    threading.Timer(0.05, term.depose).start()
    assert term.leadership.wait(LIMIT)


def test_a_stale_term_is_fenced_off_in_both(database: Database, driver: str) -> None:
    url = database.url(driver)
    with Node(url) as node:
        token = node.lead().token
        real = Leadership(TermInfo("ledger", token, 0.0, "shop", "", 0.0), LeaseCell(create()))
        fake = FakeLeadership("ledger", token)
        engine = create_engine(url)
        with engine.begin() as connection:
            real.fence(connection)
            real.fence_cursor(connection.connection.cursor())
            fake.fence(connection)
            fake.fence_cursor(None)
        node.terms.release("ledger", None)
        node.lead()
        fake.expire()
        for fence in (real.fence, fake.fence):
            with (
                engine.connect() as connection,
                pytest.raises(StaleTermError, match=f"'ledger' with the token {token} "),
            ):
                fence(connection)
        with engine.connect() as connection, pytest.raises(StaleTermError, match="'ledger'"):
            real.fence_cursor(connection.connection.cursor())
        with pytest.raises(StaleTermError):
            fake.fence_cursor(None)
        engine.dispose()


def test_an_elected_function_runs_until_it_is_deposed() -> None:
    seen: list[int] = []

    def feed(leadership: Leadership) -> None:
        assert current_leadership() is leadership
        while not leadership.wait(0.001):
            leadership.progress()
            seen.append(leadership.token)

    with elected(feed, token=5) as term:
        while not seen:
            time.sleep(0.001)
        assert term.stopped_after is None
        term.depose("another node is preferred")
        assert term.leadership.reason == "another node is preferred"
    assert set(seen) == {5}
    assert term.leadership.progressed > 0
    assert term.stopped_after is not None


def test_a_function_that_does_not_stop_or_raises_fails_the_test() -> None:
    release = threading.Event()
    with pytest.raises(StillRunningError, match="deaf has not stopped"), elected(lambda: None) as _, _deaf(release):
        pass

    def broken() -> None:
        raise ValueError("no price")

    with pytest.raises(ValueError, match="no price"), elected(broken):
        pass


@contextlib.contextmanager
def _deaf(release: threading.Event) -> Iterator[None]:
    def deaf(_leadership: Leadership) -> None:
        release.wait(LIMIT)

    try:
        with elected(deaf, timeout=0.05):
            yield
    finally:
        release.set()


def test_a_block_leads_and_leads_no_more_afterwards() -> None:
    with leading("ledger", token=7) as leadership:
        assert current_leadership() is leadership
    with pytest.raises(Exception, match="there is no leadership here"):
        current_leadership()


def test_signals_reach_their_receivers() -> None:
    heard: list[tuple[str, int]] = []

    def receiver(sender: str, token: int, **_: Any) -> None:
        heard.append((sender, token))

    leader_elected.connect(receiver)
    try:
        send_elected("ledger", token=7)
    finally:
        leader_elected.disconnect(receiver)
    assert heard == [("ledger", 7)]


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["real", "fake"])
def runs(
    request: pytest.FixtureRequest, database: Database, driver: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeRunClient()
        return
    app = Celery("shop", set_as_current=False)
    app.conf.highlander_url = database.url(driver)
    Highlander(app)
    with Node(database.url(driver)):
        pass  # the tables are there
    monkeypatch.setattr(client, "_client", None)
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    monkeypatch.setattr(alone, "_links", [])
    yield client.client_for(app)
    for link in alone._links:
        link.finish(LIMIT)
    os.environ.pop(ADDRESS_VARIABLE, None)


def want(name: str = "one", *, limit: int = 1, wait: float = 0.0, fenced: bool = False, task_id: str = "t1") -> Want:
    base = lock_key("shop", f"task\x1f{name}") >> 10 << 10
    return Want(base, limit, name, "shop.task", task_id, wait, fenced=fenced, abort=True)


def test_one_run_holds_a_key_and_the_next_one_is_told_who_does(runs: Any) -> None:
    with runs.hold(want(task_id="first")):
        with pytest.raises(SingletonConflictError, match="one is held, by task first") as caught:
            runs.hold(want(task_id="second")).__enter__()
        assert (caught.value.key, caught.value.task_id) == ("one", "first")
        with runs.hold(want("two")):
            pass
    with runs.hold(want(task_id="third", wait=LIMIT)):
        pass


def test_as_many_as_the_limit_hold_a_key(runs: Any) -> None:
    with runs.hold(want(limit=2, task_id="a")) as (one, _), runs.hold(want(limit=2, task_id="b")) as (two, _):
        assert {one, two} == {want().base, want().base + 1}
        with pytest.raises(SingletonConflictError):
            runs.hold(want(limit=2, task_id="c")).__enter__()


def test_a_run_that_waits_gets_the_key_when_it_is_free(runs: Any) -> None:
    got = threading.Event()

    def waiter() -> None:
        with runs.hold(want(wait=LIMIT, task_id="late")):
            got.set()

    with runs.hold(want(task_id="early")):
        thread = threading.Thread(target=waiter)
        thread.start()
        assert not got.wait(0.1)
    assert got.wait(LIMIT)
    thread.join()


def test_tokens_rise_with_each_run_of_a_key(runs: Any) -> None:
    tokens = []
    for number in range(3):
        with runs.hold(want(fenced=True, wait=LIMIT, task_id=str(number))) as (_, token):
            tokens.append(token)
    assert tokens == sorted(set(tokens))
    with runs.hold(want(wait=LIMIT)) as (_, token):
        assert token is None


def test_one_message_waits_for_a_key_until_it_is_forgotten(runs: Any) -> None:
    message = Waiting(want().base, "shop", "one", "shop.task", "m1", "celery", None)
    assert runs.claim(message) is None
    other = Waiting(want().base, "shop", "one", "shop.task", "m2", "celery", None)
    found = runs.claim(other)
    assert (found.task_id, found.name, found.queue) == ("m1", "one", "celery")
    runs.forget("m1", wait=True)
    assert runs.claim(other) is None
    runs.forget("m2", wait=True)


def test_eager_tasks_take_their_keys_from_the_test() -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.highlander_url = "postgresql://nobody@127.0.0.1:1/none"
    Highlander(app)
    calls: list[str] = []

    @app.task(base=SingletonTask, singleton={"unique_on": ["account"], "on_unavailable": "raise"})
    def sync(account: str) -> str:
        calls.append(account)
        return account

    with SingletonRuns(app) as runs:
        assert sync.apply(args=["one"]).result == "one"
        with runs.held(sync, "one"):
            assert sync.apply(args=["one"]).result == {"highlander_skipped": runs.key_of(sync, "one")}
            assert sync.apply(args=["two"]).result == "two"
        with runs.unavailable():
            assert "taken the database away" in str(sync.apply(args=["one"]).result)
    assert calls == ["one", "two"]
